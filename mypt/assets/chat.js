// The chat page. Whatever a model or a document says becomes text nodes; nothing here parses HTML.
const $ = id => document.getElementById(id)
let work = null      // the answer being made
let chat = null      // the conversation: id, title, turns of { text, sent: OpenAI's messages, earlier, reply }

// Requests: the token is kept for this tab only, and asked for when the server wants one.
async function call(path, body, signal) {
  const headers = body ? { 'content-type': 'application/json' } : {}
  const token = sessionStorage.getItem('mypt-token')
  if (token) headers.authorization = `Bearer ${token}`
  const r = await fetch(path, { method: body ? 'POST' : 'GET', headers, signal, body: body && JSON.stringify(body) })
  if (r.status == 401) { await knock(); return call(path, body, signal) }
  if (!r.ok) throw Error((await r.json().catch(() => null))?.error?.message ?? `the server says ${r.status}`)
  return r
}
const knock = () => new Promise(done => {
  $('token').value = ''
  $('door').showModal()
  $('door').onclose = () => { sessionStorage.setItem('mypt-token', $('token').value.trim()); done() }
})
async function* events(response) {      // of a stream: the JSON after each `data: `
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let held = ''; ;) {
    const { value, done } = await reader.read()
    if (done) return
    const parts = (held + value).split('\n\n')
    held = parts.pop()
    for (const p of parts) if (p.startsWith('data: ') && p != 'data: [DONE]') yield JSON.parse(p.slice(6))
  }
}

// Conversations are kept in this browser and nowhere else, the newest first.
const SHELF = 'mypt-chats', MOST = 50
const newId = () => crypto.randomUUID?.() ?? String(Math.random())
// A chat remembers what this tab last read or wrote of it; what is not enumerable is not stored.
const seen = c => Object.defineProperty(c, 'was', { value: JSON.stringify(c.turns), configurable: true })
const shelf = {
  read() {
    try { return JSON.parse(localStorage.getItem(SHELF)).filter(c => c?.id && Array.isArray(c.turns)).map(seen) } catch { return [] }
  },
  write(list) {
    for (; list.length; list.pop()) try { return localStorage.setItem(SHELF, JSON.stringify(list)) } catch { }      // full: the oldest goes
    try { localStorage.removeItem(SHELF) } catch { }
  },
  save(c) {
    const kept = this.read().find(x => x.id == c.id)
    if (kept && c.was && kept.was != c.was) c.id = newId()      // another tab went on with it: both are kept
    this.write([seen(c), ...this.read().filter(x => x.id != c.id)].slice(0, MOST))
    listChats()
  },
  drop(id) { this.write(this.read().filter(x => x.id != id)); listChats() },
}
function listChats() {
  $('chat-list').replaceChildren()
  for (const c of shelf.read()) {
    const li = el('li', '', '', $('chat-list')), b = el('button', 'open', c.title, li), x = el('button', 'drop', '×', li)
    b.type = x.type = 'button'
    b.onclick = () => openChat(c)
    if (c.id == chat?.id) b.setAttribute('aria-current', 'true')
    x.ariaLabel = `Delete “${c.title}”`
    x.onclick = () => { if (confirm(`Delete “${c.title}”?`)) { shelf.drop(c.id); if (c.id == chat.id) newChat() } }
  }
  $('no-chats').hidden = $('chat-list').childElementCount > 0
}
function openChat(c) {
  work?.abort()
  chat = c
  $('log').replaceChildren()
  $('empty').hidden = c.turns.length > 0
  for (const t of c.turns) { question(t.text); Reply.of(t.reply) }
  listChats()
  drawer(false)
  toEnd()
}
function newChat() {
  openChat({ id: newId(), title: '', turns: [] })
  $('ask').focus()
}
function drawer(open) {
  document.body.classList.toggle('drawer', open)
  $('chats-open').ariaExpanded = String(open)
}

// One message on the page.
function article(kind, who) {
  const a = el('article', kind)
  el('h2', '', who, a)
  $('log').append(a)
  $('empty').hidden = true
  return a
}
const question = text => el('p', 'said', text, article('me f-user', 'You')).parentElement
function fold(parent, name, title) {
  const d = el('details', name, '', parent)
  el('summary', '', title, d)
  return d
}
class Reply {
  constructor(model) {
    this.box = article('model', model)
    this.box.ariaBusy = 'true'
    this.said = el('div', 'said', '', this.box)
    this.data = { model, content: '', think: '', steps: [], notes: [] }
  }
  static of(data) {      // one that was kept
    const r = new Reply(data.model)
    for (const s of data.steps ?? []) r.step(s)
    if (data.think) r.think(data.think)
    Object.assign(r.data, { content: data.content ?? '', annotations: data.annotations })
    r.documents(data.sources, data.read)
    for (const n of data.notes ?? []) r.note(n.text, n.wrong)
    r.end()
  }
  think(text) {
    if (!this.thoughts) {
      const d = fold(this.box, 'think f-think', 'Thought')
      this.thoughts = el('div', 'inside', '', d)
      this.box.insertBefore(d, this.said)
    }
    this.thoughts.textContent = this.data.think += text
  }
  step({ kind, text, think }) {
    if (!this.trace) {
      this.trace = fold(this.box, 'trace', '')
      this.steps = el('ol', '', '', this.trace)
      this.box.insertBefore(this.trace, this.said)
    }
    if (kind == 'call') {        // what was thought so far led to this call
      this.data.content = this.data.think = ''
      this.said.replaceChildren()
      this.thoughts?.parentElement.remove()
      this.thoughts = null
    }
    this.data.steps.push({ kind, text, think })
    const li = el('li', kind == 'call' ? 'f-toolcall' : 'f-toolresult', '', this.steps)
    el('b', '', kind == 'call' ? 'Call' : 'Result', li)
    if (think) el('i', '', think, li)
    el('code', '', text, li).tabIndex = 0
    const n = this.steps.querySelectorAll('.f-toolcall').length
    this.trace.firstChild.textContent = `${n} tool call${n == 1 ? '' : 's'}`
  }
  documents(sources = [], read = []) {      // what was cited, and what was only shown to the model
    Object.assign(this.data, { sources, read })
    const rest = read.filter(d => !sources.some(s => s.doc_id == d.doc_id))
    for (const [name, label, list] of [['sources', 'Sources: ', sources], ['read', 'Looked up: ', rest]]) {
      if (!list.length) continue
      const p = el('p', name, label, this.box)
      for (const { doc_id, title } of list) {
        const a = el('a', '', doc_id, p)
        a.href = '#doc=' + encodeURIComponent(doc_id)
        a.title = title
      }
    }
  }
  note(text, wrong = false) {
    this.data.notes.push({ text, wrong })
    el('p', 'note', text, this.box)
    this.box.classList.toggle('wrong', wrong)
  }
  text(piece) {      // drawn once a frame, however many pieces come
    this.data.content += piece
    this.frame ??= requestAnimationFrame(() => this.draw())
  }
  draw() {
    this.frame = null
    const low = atEnd()
    this.said.replaceChildren()
    markdown(this.data.content, this.said)
    if (low) toEnd()
  }
  take(e) {
    const d = e.choices?.[0]?.delta ?? {}, more = e.mypt ?? {}
    if (e.error) throw Error(e.error.message)
    if (d.reasoning_content) this.think(d.reasoning_content)
    if (d.content) this.text(d.content)
    if (d.annotations) this.data.annotations = d.annotations
    if (d.tool_calls) this.note('The model called a tool: ' + d.tool_calls[0].function.name)
    if (more.trace) this.step(more.trace)
    if (more.sources) { this.documents(more.sources, more.read); if (more.stopped != 'answer') this.note(more.says, true) }
    if (e.choices?.[0]?.finish_reason == 'length') this.note('Cut off: no more room.')
    this.turn = more.messages ?? this.turn
    this.stopped = more.stopped ?? this.stopped
  }
  end() {
    cancelAnimationFrame(this.frame)
    this.draw()
    this.box.ariaBusy = 'false'
    const row = el('p', 'do', '', this.box), redo = el('button', 'again', 'Again')
    redo.type = 'button'
    redo.title = 'Answer once more, in other words'
    redo.onclick = again
    row.append(copyButton(() => this.data.content), redo)
  }
  message() {
    const { content, think, annotations } = this.data
    return { role: 'assistant', content, ...(think && { reasoning_content: think }), ...(annotations && { annotations }) }
  }
}

// A question and its answer.
const heat = () => Math.min(2, Math.max(0, Number($('temperature').value) || 0))
async function ask(text, earlier = []) {
  const mine = chat, turn = { text, sent: [], earlier, reply: null }, box = question(text)
  let t = heat(), reply
  if (earlier.length && !t) t = 0.7      // at 0 it would say the same
  work = new AbortController()
  const { signal } = work
  busy(true)
  toEnd()
  for (let tries = 1; ; tries++, t = Math.min(2, t + 0.4)) {
    reply = new Reply($('model').value)
    await answer(mine, turn, reply, t, signal)
    if (signal.aborted || tries == 4 || !earlier.includes(reply.data.content)) break
    reply.box.remove()
  }
  reply.end()
  turn.reply = reply.data
  mine.turns.push(turn)
  mine.title ||= text.slice(0, 60)
  shelf.save(mine)
  if (work?.signal == signal) busy(false)
  if (box.isConnected) toEnd()
}
async function answer(mine, turn, reply, temperature, signal) {
  const system = $('system').value.trim(), asked = { role: 'user', content: turn.text }
  const sent = [...(system ? [{ role: 'system', content: system }] : []), ...mine.turns.flatMap(t => t.sent), asked]
  const mode = document.querySelector('#modes :checked').value
  const body = { model: $('model').value, stream: true, messages: sent, temperature, mypt: { mode } }
  if ($('tokens').value) body.max_tokens = Number($('tokens').value)
  turn.sent = []
  try {
    for await (const e of events(await call('/v1/chat/completions', body, signal))) reply.take(e)
    const spoke = reply.data.content.trim()
    if (spoke && (reply.stopped ?? 'answer') == 'answer') {
      const said = reply.turn ?? [asked]      // without the answer where that was cut off
      turn.sent = [...said, ...(said.at(-1).role == 'assistant' ? [] : [reply.message()])]
    } else if (reply.stopped == null) reply.note('The model said nothing.')
  } catch (e) {
    reply.note(signal.aborted ? 'Stopped.' : e.message, !signal.aborted)
    if (!signal.aborted) $('state').textContent = e.message
    else if (reply.data.content.trim()) turn.sent = [asked, reply.message()]
  }
}
function again() {
  if (work || !chat.turns.length) return
  const { text, earlier, reply } = chat.turns.pop(), log = $('log')
  log.lastElementChild.remove()
  log.lastElementChild.remove()
  ask(text, [...(earlier ?? []), reply.content])
}
const atEnd = () => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight < 60
const toEnd = () => { $('log').scrollTop = $('log').scrollHeight }
function busy(on) {
  $('send').textContent = on ? 'Stop' : 'Send'
  document.body.classList.toggle('busy', on)
  if (on) $('state').textContent = 'Answering'
  else if ($('state').textContent == 'Answering') $('state').textContent = ''
  if (!on) work = null
}

// Documents open on top of the conversation; their address is the part after `#`, so the way back works.
async function showDocument() {
  const id = location.hash.startsWith('#doc=') ? decodeURIComponent(location.hash.slice(5)) : null
  if (id == null) { $('paper').close(); return }
  $('paper-title').textContent = id
  try {
    const d = await (await call('/v1/documents/' + encodeURIComponent(id))).json()
    $('paper-title').textContent = d.title || d.doc_id
    $('paper-text').textContent = d.text
  } catch (e) { $('paper-text').textContent = e.message }
  if (!$('paper').open) $('paper').showModal()
}

// The switch says what the number in the settings is: 0, or something else.
function wording() {
  for (const i of document.querySelectorAll('#wording input')) i.checked = (i.value == '0') == (heat() == 0)
  $('heat').textContent = heat()
}

async function start() {
  $('form').onsubmit = e => {
    e.preventDefault()
    if (work) return work.abort()
    const text = $('ask').value.trim()
    if (!text) return
    $('ask').value = ''
    ask(text)
  }
  $('ask').onkeydown = e => { if (e.key == 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); if (!work) $('form').requestSubmit() } }
  document.onkeydown = e => { if (e.key == 'Escape' && !$('paper').open) { work?.abort(); drawer(false) } }
  $('fresh').onclick = newChat
  $('chats-open').onclick = () => drawer(!document.body.classList.contains('drawer'))
  $('more').onclick = () => { const s = $('settings'); s.hidden = !s.hidden; $('more').ariaExpanded = String(!s.hidden) }
  $('temperature').oninput = wording
  for (const i of document.querySelectorAll('#wording input')) i.onchange = () => { $('temperature').value = i.value; wording() }
  $('paper-close').onclick = () => $('paper').close()
  $('paper').onclose = () => { if (location.hash) history.replaceState(null, '', location.pathname) }
  addEventListener('hashchange', showDocument)
  addEventListener('storage', listChats)      // another tab wrote
  wording()
  newChat()
  try {
    for (const m of (await (await call('/v1/models')).json()).data) el('option', '', m.id, $('model'))
    const docs = (await (await call('/v1/documents')).json()).data
    $('shelf').textContent = docs.length ? `${docs.length} document${docs.length == 1 ? '' : 's'} to look things up in.` : ''
    for (const i of document.querySelectorAll('#modes input')) i.disabled = i.value != 'chat' && !docs.length
  } catch (e) { $('state').textContent = e.message }
  showDocument()
}
start()
