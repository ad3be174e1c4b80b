// A hair line over a plot and what each run says there, by mouse or with the arrow keys. It reads the picture itself: paths and axes.
export function readout(figure) {
  const plot = figure.querySelector('.plot'), pic = plot.querySelector('svg')
  const [x0, x1, y0, y1, log] = pic.dataset.axes.split(' ').map(Number)
  const lines = [...pic.querySelectorAll('[data-name]')].map(p =>
    [p.dataset.name, p.getAttribute('d').slice(1).split('L').map(xy => xy.split(' ').map(Number))])
  const said = document.createElement('span'), hair = document.createElement('i')
  said.className = 'readout'; said.setAttribute('role', 'status'); hair.className = 'hair'; hair.hidden = true
  figure.querySelector('figcaption').append(said); plot.append(hair)
  const value = y => { const v = y1 - y / 1000 * (y1 - y0), t = log ? Math.exp(v) : v; return +t.toPrecision(3) }
  let at = null
  const show = x => {
    at = x === null ? null : Math.min(1000, Math.max(0, x)); hair.hidden = at === null
    if (at === null) return said.textContent = ''
    hair.style.left = at / 10 + '%'
    const step = Math.round(x0 + at / 1000 * (x1 - x0))
    const near = lines.map(([name, points]) => [name, points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)])
      .filter(([, p]) => Math.abs(p[0] - at) < 25)
    said.textContent = [`step ${step.toLocaleString('en')}`, ...near.map(([name, p]) => `${name} ${value(p[1]).toLocaleString('en', { maximumSignificantDigits: 3 })}`)].join(' · ')
  }
  plot.tabIndex = 0
  plot.setAttribute('role', 'group')
  plot.setAttribute('aria-label', figure.querySelector('figcaption').firstChild.textContent + ': arrow keys read values')
  plot.dataset.lmSuppressShortcuts = 'true'                       // JupyterLab: these keys are ours
  plot.addEventListener('pointermove', e => { const r = pic.getBoundingClientRect(); show(1000 * (e.clientX - r.left) / r.width) })
  plot.addEventListener('pointerleave', () => show(null))
  plot.addEventListener('blur', () => show(null))
  plot.addEventListener('keydown', e => {
    const by = { ArrowLeft: -10, ArrowRight: 10, Home: -1000, End: 1000 }[e.key]
    if (by) { e.preventDefault(); e.stopPropagation(); show((at ?? (by > 0 ? -10 : 1010)) + by) }
  })
}
export const readouts = root => root.querySelectorAll('figure.panel').forEach(readout)
