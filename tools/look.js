// What a browser shows of the open page: the value of this script is a list of what is wrong with it.
(({ width, head }) => {
  const problems = []
  const all = selector => [...document.querySelectorAll(selector)]
  const start = e => e.outerHTML.slice(0, 100)

  // Width, and where the text begins.
  const root = document.documentElement
  if (root.scrollWidth > width) {
    const scrolls = e => e && e !== document.body && e !== root && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement))
    const widest = all('main *').find(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
    problems.push(`is wider than its window: ${root.scrollWidth} of ${width} pixels; ${widest ? 'see ' + start(widest) : ''}`)
  }
  if (!document.body.innerText.trim()) problems.push('is blank in a browser')
  const top = document.querySelector('main')?.getBoundingClientRect().top ?? 0
  if (top > head) problems.push(`begins its text ${Math.round(top)} pixels from the top, at a width of ${width}`)

  // Code wraps; output, and what HTML of an output holds, may scroll. What scrolls can be reached by keyboard.
  for (const e of all('main *')) {
    if (e.scrollWidth <= e.clientWidth + 1 || !/auto|scroll/.test(getComputedStyle(e).overflowX)) continue
    if (e.matches('pre[class]:not(.output)')) problems.push(`has code that scrolls sideways at ${width}: ${e.innerText.slice(0, 60)}`)
    else if (e.tabIndex < 0) problems.push(`has what scrolls and no keyboard reaches: ${start(e)}`)
  }

  // One theme for the page, its frames, its pictures and its figures.
  const dark = matchMedia('(prefers-color-scheme: dark)').matches
  for (const e of all('main iframe, main img')) {
    const { filter, mixBlendMode, colorScheme } = getComputedStyle(e)
    const follows = e.matches('img.figure')
      ? filter.includes('invert') === dark && mixBlendMode !== 'normal'
      : !/^(only )?(light|dark)( only)?$/.test(colorScheme) || colorScheme.includes('dark') === dark
    if (!follows) problems.push(`has what does not follow the theme of the page: ${start(e)}`)
  }

  // Contrast: the colour of each text against what is behind it.
  const pen = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true }), seen = new Map()
  const rgba = colour => {
    if (!seen.has(colour)) {
      pen.clearRect(0, 0, 1, 1)
      pen.fillStyle = colour
      pen.fillRect(0, 0, 1, 1)
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data
      seen.set(colour, [r, g, b, a / 255])
    }
    return seen.get(colour)
  }
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1]
  const light = colour => {
    const [r, g, b] = colour.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const papers = new Map()
  const paper = e => {
    if (!e) return [255, 255, 255, 1]
    if (!papers.has(e)) {
      const own = rgba(getComputedStyle(e).backgroundColor)
      papers.set(e, own[3] === 1 ? own : over(own, paper(e.parentElement)))
    }
    return papers.get(e)
  }
  const faint = new Map(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim()
    if (!text || !e.checkVisibility() || e.closest('svg, math, script, style, [disabled], .skip')) continue
    const { color, fontSize, fontWeight } = getComputedStyle(e), ground = paper(e)
    const [low, high] = [light(over(rgba(color), ground)), light(ground)].sort((a, b) => a - b)
    const size = parseFloat(fontSize), large = size >= 24 || (size >= 18.66 && fontWeight >= 700)
    const ratio = (high + 0.05) / (low + 0.05)
    if (ratio < (large ? 3 : 4.5)) faint.set(color + ground, `has text of a contrast of ${ratio.toFixed(2)}: ${text.slice(0, 40)}`)
  }
  return [...problems, ...faint.values()]
})
