// A hair line over a plot and what each run says there, by mouse or with the arrow keys. It reads the picture itself: the paths that
// matplotlib drew, the limits of the axes, and their box in the picture.
export function readout(figure) {
  const plot = figure.querySelector('.plot'), pic = plot.querySelector('svg')
  const [x0, x1, y0, y1, log] = pic.dataset.axes.split(' ').map(Number)
  const [left, top, width, height] = pic.dataset.box.split(' ').map(Number), whole = pic.viewBox.baseVal
  const scale = log ? Math.log : v => v, unscale = log ? Math.exp : v => v
  const point = text => { const [x, y] = text.trim().split(' ').map(Number); return [1000 * (x - left) / width, (y - top) / height] }
  const lines = [...pic.querySelectorAll('[data-name]')].map(g =>
    [g.dataset.name, g.querySelector('path').getAttribute('d').slice(1).split('L').map(point)])
  const said = document.createElement('span'), hair = document.createElement('i')
  said.className = 'readout'; said.setAttribute('role', 'status'); hair.className = 'hair'; hair.hidden = true
  hair.style.top = 100 * top / whole.height + '%'; hair.style.height = 100 * height / whole.height + '%'
  figure.querySelector('figcaption').append(said); plot.append(hair)
  const value = y => +unscale(scale(y1) - y * (scale(y1) - scale(y0))).toPrecision(3)
  let at = null                                                   // thousandths of the axis
  const show = x => {
    at = x === null ? null : Math.min(1000, Math.max(0, x)); hair.hidden = at === null
    if (at === null) return said.textContent = ''
    hair.style.left = 100 * (left + at / 1000 * width) / whole.width + '%'
    const step = Math.round(x0 + at / 1000 * (x1 - x0))
    const near = lines.map(([name, points]) => [name, points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)])
      .filter(([, p]) => Math.abs(p[0] - at) < 25)
    said.textContent = [`step ${step.toLocaleString('en')}`, ...near.map(([name, p]) => `${name} ${value(p[1]).toLocaleString('en', { maximumSignificantDigits: 3 })}`)].join(' · ')
  }
  plot.tabIndex = 0
  plot.setAttribute('role', 'group')
  plot.setAttribute('aria-label', figure.querySelector('figcaption').firstChild.textContent + ': arrow keys read values')
  plot.dataset.lmSuppressShortcuts = 'true'                       // JupyterLab: these keys are ours
  plot.addEventListener('pointermove', e => { const r = pic.getBoundingClientRect(); show(1000 * ((e.clientX - r.left) / r.width * whole.width - left) / width) })
  plot.addEventListener('pointerleave', () => show(null))
  plot.addEventListener('blur', () => show(null))
  plot.addEventListener('keydown', e => {
    const by = { ArrowLeft: -10, ArrowRight: 10, Home: -1000, End: 1000 }[e.key]
    if (by) { e.preventDefault(); e.stopPropagation(); show((at ?? (by > 0 ? -10 : 1010)) + by) }
  })
}
export const readouts = root => root.querySelectorAll('figure.panel').forEach(readout)
