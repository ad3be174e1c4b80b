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
const LAYERS = { role: 'Role', trained: 'Trained', weight: 'Weight', segment: 'Segment', probability: 'Probability' }
// Control characters, invisible and direction-changing ones: shown by code point, so that nothing hides in a line
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g
const SVG = 'http://www.w3.org/2000/svg'
let uid = 0

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
  o.real = o.segments.reduce((s, g) => s + (g > 0), 0)
  o.spans = []                           // [first, end) of every segment
  for (let i = 0; i < n; i++) {
    if (i === 0 || o.segments[i] !== o.segments[i - 1]) o.spans.push([i, i, o.segments[i]])
    o.spans.at(-1)[1] = i + 1
  }
  o.episodes = o.spans.filter(s => s[2] > 0).length
  return item.open = o
}

function strip(o) {                      // a row as a skyline: colour is the role, full height is trained
  const H = 20, paths = {}
  const box = svg('svg', { viewBox: `0 0 ${o.n} ${H}`, preserveAspectRatio: 'none', class: 'strip', 'aria-hidden': 'true' })
  for (let i = 0, j; i < o.n; i = j) {
    const f = o.fam[i], on = o.weights[i] > 0
    for (j = i + 1; j < o.n && o.fam[j] === f && o.weights[j] > 0 === on && o.segments[j] === o.segments[i];) j++
    const y = on ? 0 : f === 'pad' ? H - 3 : H / 2
    paths[f] = (paths[f] ?? '') + `M${i} ${y}H${j}V${H}H${i}z`
  }
  for (const [f, d] of Object.entries(paths)) box.append(svg('path', { d, class: 'f-' + f }))
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
  const e = el('span', { id: `${id}-${i}`, 'data-i': i, 'data-id': o.ids[i], role: 'option', 'aria-selected': 'false',
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
    Object.assign(this, { root, data, on, id: `mypt${++uid}`, index: 0, cursor: -1, only: new Set(), hits: [], hit: -1 })
    root.classList.add('mypt', 'inspector')
    root.dataset.layer = 'role'
    root.dataset.lmSuppressShortcuts = 'true'                     // JupyterLab: these keys are ours
    this.legend = el('div', { class: 'legend' })
    this.body = el('div', { class: 'body' })
    this.detail = el('div', { class: 'detail', 'aria-live': 'polite' })
    root.replaceChildren(...[this.head(), this.legend, this.shelf(), this.body, this.detail].filter(Boolean))
    root.addEventListener('keydown', e => this.key(e))
    this.show(0)
  }

  head() {
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
    return el('div', { class: 'head' }, this.title, pick, this.layers(), el('div', { class: 'search' }, this.search, this.found))
  }

  layers() {
    const group = el('div', { class: 'layers', role: 'radiogroup', 'aria-label': 'Colour by' })
    const any = f => this.data.items.some(f)
    for (const [key, label] of Object.entries(LAYERS)) {
      if (key === 'segment' && !any(it => it.segments)) continue
      if (key === 'probability' && !any(it => it.probs)) continue
      const input = el('input', { type: 'radio', name: this.id + '-layer', value: key, checked: key === 'role' ? '' : null })
      input.addEventListener('change', () => this.setLayer(key))
      group.append(el('label', {}, input, el('span', {}, label)))
    }
    const ids = el('input', { type: 'checkbox' })
    ids.addEventListener('change', () => this.root.classList.toggle('ids', ids.checked))
    return el('div', { class: 'switches' }, group, el('label', { class: 'box' }, ids, el('span', {}, 'ids')))
  }

  setLayer(key) {
    this.root.dataset.layer = key
    for (const r of this.root.querySelectorAll('.layers input')) r.checked = r.value === key
    this.on.layer?.(key)
  }

  shelf() {                              // every item as one strip: the way through a dataset
    if (this.data.items.length < 2) return this.rows = null
    this.rows = el('div', { class: 'shelf', role: 'group', 'aria-label': 'Rows and episodes' })
    const longest = Math.max(...this.data.items.map(it => it.t.length))
    this.data.items.forEach((item, i) => {
      const o = open(item, this.data), bar = strip(o)
      bar.style.width = 100 * o.n / longest + '%'
      const b = el('button', { type: 'button', class: 'row' }, el('span', { class: 'name' }, item.label || `${i + 1}`), bar,
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
    this.roles(o); this.filter(); this.find(this.search.value, false); this.point(-1)
    this.on.index?.(this.index)
  }

  summary(item, o) {
    const bits = [plural(o.real, 'token'), `${fmt(o.trained)} trained (${pct(o.trained, o.real)})`]
    if (o.spans.length > 1) bits.push(plural(o.episodes, 'episode'), `${pct(o.real, o.n)} full`)
    return el('div', { class: 'summary' }, el('strong', {}, item.label || ''), item.note ? el('p', {}, item.note) : null,
      el('p', {}, bits.join(' · ')), el('div', { class: 'map' }, strip(o)))
  }

  roles(o) {                             // the legend is the role filter
    const count = {}
    o.fam.forEach((f, i) => { const c = count[f] ??= [0, 0]; c[0]++; c[1] += o.weights[i] > 0 })
    this.only.forEach(f => f in count || this.only.delete(f))
    const chips = Object.entries(count).map(([f, [n, on]]) => {
      const b = el('button', { type: 'button', class: `chip f-${f}`, 'aria-pressed': this.only.has(f), title: 'Show only this role' },
        el('i', {}), NAMES[f] ?? f, el('small', {}, on && on < n ? `${fmt(on)} of ${fmt(n)}` : fmt(n)))
      b.addEventListener('click', () => {
        this.only.has(f) ? this.only.delete(f) : this.only.add(f)
        b.setAttribute('aria-pressed', this.only.has(f)); this.filter()
      })
      return b
    })
    const weights = [...new Set(o.weights)].sort((a, b) => a - b).filter(w => w > 0), plain = weights.length === 1 && weights[0] === 1
    const marks = [el('span', { class: 'tok f-system' }, 'not trained'), ...weights.slice(0, 6).map(w => {
      const m = el('span', { class: 'tok on f-assistant' }, plain ? 'trained' : `× ${+w.toFixed(2)}`)
      m.style.setProperty('--w', w)
      return m
    })]
    this.legend.replaceChildren(...chips, el('span', { class: 'mark' }, ...marks))
  }

  filter() {
    if (this.only.size) this.root.dataset.only = [...this.only].join(' ')
    else delete this.root.dataset.only
    let divider = null
    for (const b of this.area.children) {
      if (b.matches('.divider')) { divider = b; b.hidden = this.only.size > 0; continue }
      b.hidden = this.only.size > 0 && ![...this.only].some(f => b.querySelector('.tok.f-' + f))
      if (divider && !b.hidden) divider.hidden = false
    }
  }

  step(i, by) {                          // the next token that the filter lets through
    const shown = k => !this.only.size || this.only.has(this.o.fam[k])
    for (let k = i + by; k >= 0 && k < this.o.n; k += by) if (shown(k)) return k
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
        s.setAttribute('aria-label', `${o.texts[i] || 'part of a character'}: ` + facts(o, i).map(f => f.join(' ')).join(', '))
        this.area.setAttribute('aria-activedescendant', s.id)
        if (scroll) s.scrollIntoView({ block: 'nearest' })
      } else this.area.removeAttribute('aria-activedescendant')
    }
    this.attn?.mark(i)
    const fact = (k, v) => el('div', {}, el('span', { class: 'k' }, k), v)
    if (i < 0)
      return this.detail.replaceChildren(fact('keys',
        (this.data.items.length > 1 ? '← → previous, next · ' : '') + '/ search · Tab into the text, then arrows move token by token'))
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
    let view
    const draw = () => {
      const root = document.createElement('div')
      host.replaceChildren(root)
      view = mount(root, structuredClone(model.get('data')), {
        index: i => { if (model.get('index') !== i) { model.set('index', i); model.save_changes() } },
        layer: k => { model.set('layer', k); model.save_changes() } })
      if (model.get('layer') !== 'role') view.setLayer(model.get('layer'))
    }
    draw()
    if (model.get('index')) view.show(model.get('index'))
    model.on('change:data', draw)
    model.on('change:index', () => { if (view.index !== model.get('index')) view.show(model.get('index')) })
    model.on('change:layer', () => { if (view.root.dataset.layer !== model.get('layer')) view.setLayer(model.get('layer')) })
  }
}
