// The token inspector: one renderer for the notebook widget (anywidget) and for the self-contained page.
// Whatever the data spell, they only ever become text nodes and attributes set through the DOM, never HTML.
// Changing a layer or a filter changes attributes of the root; style sheets do the rest, so thousands of tokens stay quick.

const FAMILY = {
  pad: 'pad', newline: 'newline', system: 'system', user: 'user', user_context: 'context', assistant_context: 'context',
  toolresult: 'toolresult', assistant_open: 'assistant', text: 'assistant', assistant_close: 'assistant', eot: 'assistant',
  think_tag: 'think', think: 'think', cite_tag: 'cite', cite: 'cite', toolcall_tag: 'toolcall', toolcall: 'toolcall',
  replay: 'replay' }
const NAMES = { toolresult: 'tool result', toolcall: 'tool call', pad: 'padding' }
const BLOCK = { context: null, think: 'assistant', cite: 'assistant', toolcall: 'assistant', newline: null }
const NAMED = Object.fromEntries(Object.values(FAMILY).map(f => [f, true]))
const ODDS = [['p<.1', 'p < 0.1', p => p < .1, .05], ['p<.5', '0.1 – 0.5', p => p >= .1 && p < .5, .3],
  ['p<.9', '0.5 – 0.9', p => p >= .5 && p < .9, .7], ['p1', 'p ≥ 0.9', p => p >= .9, 1]]
const LAYERS = { role: 'Role', trained: 'Trained', weight: 'Weight', segment: 'Segment', probability: 'Probability' }
// Control characters, invisible and direction-changing ones: shown by code point, so that nothing hides in a line
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g
const SVG = 'http://www.w3.org/2000/svg'

const el = (tag, attrs = {}, ...kids) => {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) if (v !== null && v !== undefined && v !== false) e.setAttribute(k, v)
  e.append(...kids.filter(k => k !== null && k !== undefined))
  return e
}
const svg = (tag, attrs = {}, ...kids) => {
  const e = document.createElementNS(SVG, tag)
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v)
  e.append(...kids)
  return e
}
const fmt = n => n.toLocaleString('en')
const pct = (a, b) => b ? (100 * a / b).toFixed(a && a / b < .0995 || a / b > .995 && a < b ? 1 : 0) + ' %' : '–'
const plural = (n, word) => `${fmt(n)} ${word}${n === 1 ? '' : 's'}`

function unrun(runs, n, fill) {          // [value, count, value, count, …] → a value per token
  const out = new Array(n).fill(fill)
  for (let i = 0, at = 0; runs && i < runs.length; i += 2) { out.fill(runs[i], at, at + runs[i + 1]); at += runs[i + 1] }
  return out
}

function visible(text) {
  return text.replace(/\r\n|\n/g, m => (m[1] ? '[U+000D]' : '') + '⏎\n').replace(HIDDEN, c =>
    c === '\n' ? c : c === '\t' ? '⇥\t' : `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}]`)
}

function open(item, data) {              // the item with one entry per token, made once and kept
  if (item.open) return item.open
  const n = item.t.length, vocab = item.t.map(k => data.vocab[k])
  const roles = unrun(item.roles, n, 0).map(r => data.roles[r] ?? 'text')
  const o = { n, roles, ids: vocab.map(v => v[0]), texts: vocab.map(v => v[1]), kinds: vocab.map(v => v[2]),
    weights: unrun(item.weights, n, 0), msgs: item.msgs ? unrun(item.msgs, n, -1) : null,
    segments: unrun(item.segments, n, 1), probs: item.probs ?? null, fam: roles.map(r => FAMILY[r] ?? 'assistant') }
  o.trained = o.weights.reduce((s, w) => s + (w > 0), 0)
  o.heaviest = o.weights.reduce((a, w) => Math.max(a, w), 1)
  o.real = o.segments.reduce((s, g) => s + (g > 0), 0)
  o.spans = []                           // [first, end) of every segment
  for (let i = 0; i < n; i++) {
    if (i === 0 || o.segments[i] !== o.segments[i - 1]) o.spans.push([i, i, o.segments[i]])
    o.spans.at(-1)[1] = i + 1
  }
  o.episodes = o.spans.filter(s => s[2] > 0).length
  return item.open = o
}

function strip(o, layer = 'role') {      // a row as a skyline in the terms of a layer; on each but two, full height is trained
  const H = 20, paths = {}, odd = i => o.segments[i] % 2 ? 'odd' : 'even'
  const kind = {
    role: i => 'f-' + o.fam[i], trained: i => 'plain', weight: i => 'plain',
    segment: i => odd(i), probability: i => 'plain' }[layer]
  const tall = {
    weight: i => o.weights[i] / o.heaviest, segment: i => 1, probability: i => o.probs?.[i] ?? 0 }[layer] ?? (i => o.weights[i] > 0 ? 1 : .5)
  const flat = layer === 'segment' || layer === 'probability'
  const look = i => o.segments[i] === 0 || o.fam[i] === 'pad' ? ['f-pad', .15]
    : [kind(i) + (o.weights[i] > 0 && !flat ? ' on' : ''), Math.max(.08, tall(i))]
  const box = svg('svg', { viewBox: `0 0 ${o.n} ${H}`, preserveAspectRatio: 'none', class: 'strip', 'aria-hidden': 'true' })
  for (let i = 0, j; i < o.n; i = j) {
    const [name, share] = look(i)
    for (j = i + 1; j < o.n && o.segments[j] === o.segments[i]; j++) { const [n, s] = look(j); if (n !== name || s !== share) break }
    paths[name] = (paths[name] ?? '') + `M${i} ${+(H - share * H).toFixed(2)}H${j}V${H}H${i}z`
  }
  for (const [name, d] of Object.entries(paths)) box.append(svg('path', { d, class: name }))
  const cuts = o.spans.slice(1).map(s => `M${s[0]} 0V${H}`).join('')
  if (cuts) box.append(svg('path', { d: cuts, class: 'cut', 'vector-effect': 'non-scaling-stroke' }))
  return box
}

function attention(o) {                  // which positions may look at which: a triangle per segment
  const d = o.spans.filter(s => s[2] > 0).map(([a, b]) => `M${a} ${a}L${b} ${b}H${a}z`).join('')
  const seen = o.spans.filter(s => s[2] > 0).reduce((s, [a, b]) => s + (b - a) * (b - a + 1) / 2, 0)
  const cross = svg('path', { class: 'cross', d: '', 'vector-effect': 'non-scaling-stroke' })
  const pic = svg('svg', { viewBox: `0 0 ${o.n} ${o.n}`, class: 'attn', role: 'img', 'aria-label':
    `Attention of this row: ${plural(o.episodes, 'block')} on the diagonal` }, svg('path', { d, class: 'tri' }), cross)
  const note = el('figcaption', {}, `Down: who looks. Across: at whom. ${pct(seen, o.n * o.n)} of the square is computed; `
    + 'no token sees another episode.')
  const mark = i => {
    const s = o.spans.find(([a, b]) => a <= i && i < b)
    cross.setAttribute('d', s && s[2] > 0 ? `M${s[0]} ${i + .5}H${i + .5}V${s[1]}` : '')
  }
  return { figure: el('figure', { class: 'attention' }, pic, note), mark }
}

function tokens(o, id) {                 // blocks of tokens, one per message or tag pair
  const area = el('div', { class: o.n > 3000 ? 'text long' : 'text', role: 'listbox', tabindex: 0,
    'aria-label': 'Tokens: arrow keys move from one to the next' })
  const spans = new Array(o.n)
  let block = null, name = null, seg = null
  for (let i = 0; i < o.n; i++) {
    const f = o.fam[i], want = o.roles[i] === 'assistant_context' ? 'context' : f in BLOCK ? BLOCK[f] ?? name ?? f : f
    if (o.segments[i] !== seg) {
      seg = o.segments[i]; block = null
      if (o.spans.length > 1) area.append(divider(o, i))
    }
    if (!block || want !== name || o.roles[i] === 'assistant_open') {
      name = want
      const label = NAMES[name] ?? name
      block = el('div', { class: 'run' })
      area.append(el('div', { class: `block f-${name}`, role: 'group', 'aria-label': label },
        el('div', { class: 'who', 'aria-hidden': 'true' }, label), block))
    }
    block.append(spans[i] = token(o, i, id))
  }
  return { area, spans }
}

function divider(o, i) {
  const s = o.spans.find(s => s[0] === i)
  return el('div', { class: 'divider', 'aria-hidden': 'true' },
    s[2] > 0 ? `episode ${s[2]} · ${plural(s[1] - s[0], 'token')}` : `padding · ${plural(s[1] - s[0], 'token')}`)
}

function token(o, i, id) {
  const w = o.weights[i], tag = o.kinds[i] === 1
  const e = el('span', { id: `${id}-${i}`, 'data-i': i, 'data-id': o.ids[i], role: 'option', 'aria-selected': 'false', 'aria-label': o.texts[i].trim() ? null : 'space',
    class: `tok f-${o.fam[i]}${w > 0 ? ' on' : ''}${tag ? ' tag' : ''}${o.kinds[i] === 2 ? ' part' : ''} ${o.segments[i] % 2 ? 'odd' : 'even'}` })
  if (w > 0) e.style.setProperty('--w', w)
  if (o.probs && o.probs[i] !== null) e.style.setProperty('--p', o.probs[i])
  const text = visible(o.texts[i]), m = tag && /^(<\/?)(myPT_)(.*)$/s.exec(text)
  if (m) e.append(m[1], el('span', { class: 'ns' }, m[2]), m[3])
  else e.append(o.kinds[i] === 2 && !text ? '·' : text)
  return e
}

function facts(o, i) {                   // what the detail line says about token i
  const s = o.spans.find(([a, b]) => a <= i && i < b), w = o.weights[i]
  const out = [['id', o.ids[i]], ['role', o.roles[i]], ['trained', w > 0 ? `yes, weight ${+w.toFixed(3)}` : 'no']]
  if (o.probs && o.probs[i] !== null) out.push(['probability', o.probs[i].toPrecision(3)])
  if (o.msgs && o.segments[i]) out.push(['message', o.msgs[i] < 0 ? 'system' : o.msgs[i]])
  if (o.spans.length > 1) out.push(['episode', s[2] || '–'], ['position', `${i - s[0]} of its episode, ${i} of the row`])
  else out.push(['position', i])
  if (o.kinds[i] === 2) out.push(['bytes', 'part of a character'])
  return out
}

class View {
  constructor(root, data, on = {}) {
    Object.assign(this, { root, on, id: 'mypt' + crypto.getRandomValues(new Uint32Array(1))[0].toString(36), layer: 'role', index: 0, cursor: -1, only: new Set(), hits: [], hit: -1 })
    root.classList.add('mypt', 'inspector')
    root.dataset.lmSuppressShortcuts = 'true'                     // JupyterLab: these keys are ours
    this.legend = el('div', { class: 'legend' })
    this.body = el('div', { class: 'body' })
    this.detail = el('div', { class: 'detail' })
    root.addEventListener('keydown', e => this.key(e))
    this.load(data)
  }

  load(data) {                           // other items; layer, filter and search stay, and so does the place in the text
    const query = this.search?.value ?? '', held = this.root.contains(document.activeElement) && document.activeElement.className
    this.data = data
    const layers = Object.keys(LAYERS).filter(k => this.has(k))
    if (!layers.includes(this.layer)) this.layer = 'role'
    this.root.dataset.layer = this.layer
    this.root.replaceChildren(...[this.head(layers), this.legend, this.shelf(), this.body, this.detail].filter(Boolean))
    this.search.value = query
    this.show(data.follow ? data.items.length - 1 : Math.min(this.index, data.items.length - 1))
    if (data.follow) this.area?.scrollTo(0, this.area.scrollHeight)
    if (held) this.root.querySelector(`[class="${held}"]`)?.focus({ preventScroll: true })
  }

  has(layer) {                           // do the data know of it?
    const what = { segment: 'segments', probability: 'probs' }[layer]
    return !what || this.data.items.some(it => it[what])
  }

  head(layers) {
    const one = this.data.items.length < 2
    const button = (label, text, step) => {
      const b = el('button', { type: 'button', 'aria-label': label, title: label, disabled: one || null }, text)
      b.addEventListener('click', () => this.show(this.index + step))
      return b
    }
    this.where = el('span', { class: 'where', 'aria-live': 'polite' })
    this.title = el(this.data.title ? this.on.heading ?? 'h2' : 'span', { class: 'title' }, this.data.title || '')
    this.search = el('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search the text; Enter goes to the next match' })
    this.found = el('span', { class: 'found', 'aria-live': 'polite' })
    this.search.addEventListener('input', () => this.find(this.search.value))
    const pick = el('div', { class: 'pick' }, button('Previous (P)', '‹', -1), this.where, button('Next (N)', '›', 1))
    return el('div', { class: 'head' }, this.title, pick, this.layers(layers), el('div', { class: 'search' }, this.search, this.found))
  }

  layers(keys) {
    const group = el('div', { class: 'layers', role: 'radiogroup', 'aria-label': 'Colour by' })
    keys.forEach((key, k) => {
      const input = el('input', { type: 'radio', name: this.id + '-layer', value: key, checked: key === this.layer ? '' : null })
      input.addEventListener('change', () => this.setLayer(key))
      group.append(el('label', { title: `Key ${k + 1}` }, input, el('span', {}, LAYERS[key])))
    })
    const ids = this.ids = el('input', { type: 'checkbox', checked: this.root.classList.contains('ids') ? '' : null })
    ids.addEventListener('change', () => this.setIds(ids.checked))
    return el('div', { class: 'switches' }, group, el('label', { class: 'box', title: 'Key I' }, ids, el('span', {}, 'ids')))
  }

  setLayer(key) {
    if (!this.has(key)) return
    this.layer = this.root.dataset.layer = key
    for (const r of this.root.querySelectorAll('.layers input')) r.checked = r.value === key
    this.data.items.forEach((it, k) => this.rows?.childNodes[k].querySelector('.strip').replaceWith(strip(open(it, this.data), key)))
    this.body.querySelector('.map')?.replaceChildren(strip(this.o, key))
    this.marks(this.o)
    this.on.layer?.(key)
  }

  setIds(on) {
    this.ids.checked = on; this.root.classList.toggle('ids', on)
    this.on.ids?.(on)
  }

  shelf() {                              // every item as one strip: the way through a dataset
    if (this.data.items.length < 2) return this.rows = null
    this.rows = el('div', { class: 'shelf', role: 'group', 'aria-label': 'Rows and episodes' })
    const longest = Math.max(...this.data.items.map(it => it.t.length))
    this.data.items.forEach((item, i) => {
      const o = open(item, this.data), bar = strip(o, this.layer)
      const lane = el('span', { class: 'lane' }, bar)
      lane.style.width = 100 * o.n / longest + '%'
      const b = el('button', { type: 'button', class: 'row' }, el('span', { class: 'name' }, item.label || `${i + 1}`), lane,
        el('span', { class: 'num' }, o.spans.length > 1 ? `${plural(o.episodes, 'episode')}, ${pct(o.real, o.n)} full` : plural(o.n, 'token')))
      b.addEventListener('click', () => this.show(i))
      this.rows.append(b)
    })
    return this.rows
  }

  show(i) {
    const n = this.data.items.length
    if (!n) { this.body.replaceChildren(el('p', { class: 'none' }, 'Nothing to show.')); return }
    this.index = (i + n) % n
    const item = this.data.items[this.index], o = this.o = open(item, this.data)
    this.where.textContent = n > 1 ? `${this.index + 1} of ${n}` : ''
    this.rows?.childNodes.forEach((b, k) => k === this.index ? b.setAttribute('aria-current', 'true') : b.removeAttribute('aria-current'))
    const row = this.rows?.childNodes[this.index]
    if (row) this.rows.scrollTop = row.offsetTop - this.rows.offsetTop - 60
    const { area, spans } = tokens(o, this.id)
    this.attn = o.spans.length > 1 ? attention(o) : null
    this.spans = spans; this.area = area; this.cursor = -1
    area.addEventListener('pointerover', e => this.hover(e))
    area.addEventListener('click', e => this.hover(e, true))
    area.addEventListener('focus', () => this.cursor < 0 && o.n && this.point(0, true))
    this.body.replaceChildren(...[this.summary(item, o), this.attn?.figure, area].filter(Boolean))
    this.roles(o); this.find(this.search.value, false); this.point(-1)
    this.on.index?.(this.index)
  }

  summary(item, o) {
    const bits = [plural(o.real, 'token')]
    if (o.trained || !o.probs) bits.push(`${fmt(o.trained)} trained (${pct(o.trained, o.real)})`)
    if (o.spans.length > 1) bits.push(plural(o.episodes, 'episode'), `${pct(o.real, o.n)} full`)
    const known = (o.probs ?? []).filter(p => p !== null)
    if (known.length) bits.push(`perplexity ${Math.exp(-known.reduce((s, p) => s + Math.log(Math.max(p, 1e-12)), 0) / known.length).toPrecision(3)}`)
    return el('div', { class: 'summary' }, el('strong', {}, item.label || ''), item.note ? el('p', {}, item.note) : null,
      el('p', {}, bits.join(' · ')), el('div', { class: 'map' }, strip(o, this.layer)))
  }

  chip(name, key, label, title, ...kids) { // a filter that can be pressed
    const b = el('button', { type: 'button', class: name, 'aria-pressed': this.only.has(key), title }, ...kids)
    b.addEventListener('click', () => {
      this.only.has(key) ? this.only.delete(key) : this.only.add(key)
      b.setAttribute('aria-pressed', this.only.has(key)); this.filter()
    })
    return b
  }

  roles(o) {                             // the legend is the filter, by role on its left and by weight on its right
    const count = {}
    o.fam.forEach((f, i) => { const c = count[f] ??= [0, 0]; c[0]++; c[1] += o.weights[i] > 0 })
    const chips = Object.entries(count).map(([f, [n, on]]) => this.chip(`chip f-${f}`, f, '', 'Show only this role',
      el('i', {}), NAMES[f] ?? f, el('small', {}, on && on < n ? `${fmt(on)} of ${fmt(n)}` : fmt(n))))
    this.markBox = el('span', { class: 'marks' })
    this.legend.replaceChildren(...chips, this.markBox)
    this.marks(o)
  }

  marks(o) {                             // weights, or how likely, each with a sample of how it looks
    const likely = this.layer === 'probability' && o.probs, weights = [...new Set(o.weights)].sort((a, b) => a - b)
    const plain = weights.every(w => w === 0 || w === 1)
    const all = likely ? ODDS.map(([key, label, , p]) => [key, label, 'tok', '--p', p]) : weights.slice(0, 7).map(w =>
      [`w${w}`, w > 0 ? plain ? 'trained' : `× ${+w.toFixed(2)}` : 'not trained', `tok ${w > 0 ? 'on f-assistant' : 'f-system'}`, '--w', w])
    const here = new Set(all.map(m => m[0]))
    for (const k of this.only) if (/^[wp][\d.<]/.test(k) ? !here.has(k) : !o.fam.includes(k)) this.only.delete(k)
    this.markBox.replaceChildren(...all.map(([key, label, look, name, value]) => {
      const sample = el('span', { class: look }, label)
      sample.style.setProperty(name, value)
      return this.chip('mark', key, label, likely ? 'Show only tokens that were this likely' : 'Show only tokens of this weight', sample)
    }))
    this.filter()
  }

  lets(i) {                              // does the filter show token i? Roles are alternatives, so are weights; both must agree
    const o = this.o, only = [...this.only], roles = only.filter(k => k in NAMED), rest = only.filter(k => !(k in NAMED))
    const fits = k => k[0] === 'w' ? o.weights[i] === +k.slice(1) : o.probs?.[i] != null && ODDS.find(m => m[0] === k)[2](o.probs[i])
    return (!roles.length || roles.includes(o.fam[i])) && (!rest.length || rest.some(fits))
  }

  filter() {
    const on = this.only.size > 0
    this.root.toggleAttribute('data-only', on)
    this.spans.forEach((s, i) => {
      const off = on && !this.lets(i)
      if (s.classList.toggle('off', off) !== (s.ariaDisabled === 'true')) s.ariaDisabled = off ? 'true' : null
    })
    let divider = null
    for (const b of this.area.children) {
      if (b.matches('.divider')) { divider = b; b.hidden = on; continue }
      b.hidden = on && !b.querySelector('.tok:not(.off)')
      if (divider && !b.hidden) divider.hidden = false
    }
  }

  step(i, by) {                          // the next token that the filter lets through
    for (let k = i + by; k >= 0 && k < this.o.n; k += by) if (this.lets(k)) return k
    return i
  }

  find(query, jump = true) {
    this.hits = []; this.hit = -1
    for (const s of this.area.querySelectorAll('.hit')) s.classList.remove('hit')
    this.found.textContent = ''
    if (!query) return
    const o = this.o, starts = []
    let all = ''
    for (const t of o.texts) { starts.push(all.length); all += t }
    const re = new RegExp(query.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'gi')
    for (let m, i = 0; (m = re.exec(all)); ) {
      while (i + 1 < o.n && starts[i + 1] <= m.index) i++
      this.hits.push(i)
      for (let k = i; k < o.n && starts[k] < m.index + m[0].length; k++) this.spans[k].classList.add('hit')
    }
    this.found.textContent = this.hits.length ? `${fmt(this.hits.length)} here` : 'none here'
    if (jump && this.hits.length) this.next(1, false)
  }

  next(step, wrap = true) {              // to the next match, in the next item that has one
    const k = this.hit + step
    if (k >= 0 && k < this.hits.length) {
      this.hit = k; this.point(this.hits[k], true)
      this.found.textContent = `${k + 1} of ${fmt(this.hits.length)}`
      return
    }
    const n = this.data.items.length, q = this.search.value.toLowerCase()
    for (let d = 1; wrap && q && d <= n; d++) {
      const i = (this.index + step * d + n * d) % n
      if (!open(this.data.items[i], this.data).texts.join('').toLowerCase().includes(q)) continue
      this.show(i); this.hit = step > 0 ? -1 : this.hits.length
      return this.hits.length ? this.next(step, false) : undefined
    }
  }

  hover(e, pin = false) {
    const t = e.target.closest?.('.tok')
    if (t && this.area.contains(t)) this.point(+t.dataset.i, false, pin)
  }

  point(i, scroll = false, pin = scroll) { // look at token i: detail line, attention cross; `pin` moves the cursor there
    const o = this.o
    if (pin || i < 0) {
      this.spans[this.cursor]?.setAttribute('aria-selected', 'false')
      this.cursor = i
      if (i >= 0) {
        const s = this.spans[i]
        s.setAttribute('aria-selected', 'true')
        s.setAttribute('aria-label', `${o.texts[i].trim() || (o.texts[i] ? 'space' : 'part of a character')}: ` + facts(o, i).map(f => f.join(' ')).join(', '))
        this.area.setAttribute('aria-activedescendant', s.id)
        if (scroll) s.scrollIntoView({ block: 'nearest' })
      } else this.area.removeAttribute('aria-activedescendant')
    }
    this.attn?.mark(i)
    const fact = (k, v) => el('div', {}, el('span', { class: 'k' }, k), v)
    if (i < 0)
      return this.detail.replaceChildren(fact('keys',
        (this.data.items.length > 1 ? '← → previous, next · ' : '') + `/ search · 1–${this.root.querySelectorAll('.layers input').length} layer · I ids · `
        + 'Tab into the text, then arrows move token by token'))
    const word = el('span', { class: `tok f-${o.fam[i]}${o.weights[i] > 0 ? ' on' : ''}` }, visible(o.texts[i]).replace(/\n/g, '') || '·')
    this.detail.replaceChildren(fact('token', word), ...facts(o, i).map(([k, v]) => fact(k, String(v))))
  }

  line(i, step) {                        // the token above or below i
    const at = this.spans[i].getBoundingClientRect(), mid = at.left + at.width / 2
    let best = i, near = Infinity, y = null
    for (let k = i + step; k >= 0 && k < this.o.n; k += step) {
      const r = this.spans[k].getBoundingClientRect()
      if (!r.width || Math.abs(r.top - at.top) < at.height / 2) continue
      y ??= r.top
      if (Math.abs(r.top - y) > r.height / 2) break
      const d = Math.abs(r.left + r.width / 2 - mid)
      if (d < near) { near = d; best = k }
    }
    return best
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return
    const typing = e.target === this.search, radio = e.target.type === 'radio', inText = e.target === this.area
    const c = Math.max(this.cursor, 0), last = this.o ? this.o.n - 1 : 0
    const go = f => { e.preventDefault(); e.stopPropagation(); f() }
    if (typing) {
      if (e.key === 'Enter') go(() => this.next(e.shiftKey ? -1 : 1))
      if (e.key === 'Escape') go(() => { this.search.value = ''; this.find('') })
      return e.stopPropagation()
    }
    if (inText) {
      const to = { ArrowRight: () => this.step(c, 1), ArrowLeft: () => this.step(c, -1),
        Home: () => this.step(-1, 1), End: () => this.step(last + 1, -1),
        ArrowDown: () => this.line(c, 1), ArrowUp: () => this.line(c, -1) }[e.key]
      if (to) return go(() => this.point(to(), true))
    } else if (!radio) {
      if (e.key === 'ArrowRight') return go(() => this.show(this.index + 1))
      if (e.key === 'ArrowLeft') return go(() => this.show(this.index - 1))
    }
    if (e.key === 'n') go(() => this.show(this.index + 1))
    if (e.key === 'p') go(() => this.show(this.index - 1))
    if (e.key === 'i') go(() => this.setIds(!this.ids.checked))
    const layer = this.root.querySelectorAll('.layers input')[e.key - 1]
    if (layer) go(() => this.setLayer(layer.value))
    if (e.key === '/') go(() => this.search.focus())
  }
}

export function mount(root, data, on) { return new View(root, data, on) }

export function page() {                 // a self-contained page: each inspector is an element followed by its data
  const scripts = [...document.querySelectorAll('script[data-inspect]')]
  const views = scripts.map(s => mount(s.previousElementSibling, JSON.parse(s.textContent), { heading: scripts.length > 1 ? 'h2' : 'h1' }))
  if (views.length === 1)                // alone on its page: keys work wherever the focus is
    document.addEventListener('keydown', e => { if (e.target === document.body) views[0].key(e) })
  return views
}

export default {                         // anywidget
  render({ model, el: host }) {
    const root = document.createElement('div'), tell = (k, v) => { if (model.get(k) !== v) { model.set(k, v); model.save_changes() } }
    const data = () => structuredClone(model.get('data'))
    host.replaceChildren(root)
    const start = model.get('index'), view = mount(root, data(), { index: i => tell('index', i), layer: k => tell('layer', k), ids: on => tell('ids', on) })
    const follow = {
      data: () => { view.index = model.get('index'); view.load(data()) },
      index: () => { if (view.index !== model.get('index')) view.show(model.get('index')) },
      layer: () => { if (view.layer !== model.get('layer')) view.setLayer(model.get('layer')) },
      ids: () => view.setIds(model.get('ids')) }
    follow.layer(); follow.ids()
    if (start) view.show(start)
    for (const [k, f] of Object.entries(follow)) model.on('change:' + k, f)
    return () => { for (const [k, f] of Object.entries(follow)) model.off('change:' + k, f) }
  }
}
