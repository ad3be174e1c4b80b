// The chat page. Whatever a model or a document says becomes text by `textContent`; nothing here parses HTML.
'use strict'
const $ = id => document.getElementById(id)
const el = (tag, name = '', text = '', parent = null) => {
  const e = document.createElement(tag)
  if (name) e.className = name
  if (text) e.textContent = text
  parent?.append(e)
  return e
}
let messages = [], work = null      // the conversation in OpenAI's words; the answer being made

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

// One message on the page.
function article(kind, who) {
  const a = el('article', kind)
  el('h2', '', who, a)
  $('log').append(a)
  $('empty').hidden = true
  return a
}
function fold(parent, name, title) {
  const d = el('details', name, '', parent)
  el('summary', '', title, d)
  return d
}
class Reply {
  constructor(model) {
    this.box = article('model', model)
    this.box.ariaBusy = 'true'
    this.said = el('p', 'said', '', this.box)
    this.message = { role: 'assistant', content: '' }
  }
  think(text) {
    if (!this.thoughts) {
      const d = fold(this.box, 'think f-think', 'Thought')
      this.thoughts = el('div', 'inside', '', d)
      this.box.insertBefore(d, this.said)
    }
    this.thoughts.textContent += text
    this.message.reasoning_content = this.thoughts.textContent
  }
  step({ kind, text, think }) {
    if (!this.trace) {
      this.trace = fold(this.box, 'trace', '')
      this.steps = el('ol', '', '', this.trace)
      this.box.insertBefore(this.trace, this.said)
    }
    if (kind == 'call') {        // what was thought so far led to this call
      this.said.textContent = this.message.content = this.message.reasoning_content = ''
      this.thoughts?.parentElement.remove()
      this.thoughts = null
    }
    const li = el('li', kind == 'call' ? 'f-toolcall' : 'f-toolresult', '', this.steps)
    el('b', '', kind == 'call' ? 'Call' : 'Result', li)
    if (think) el('i', '', think, li)
    el('code', '', text, li).tabIndex = 0
    const n = this.steps.querySelectorAll('.f-toolcall').length
    this.trace.firstChild.textContent = `${n} tool call${n == 1 ? '' : 's'}`
  }
  sources(list) {
    if (!list.length) return
    const p = el('p', 'sources', 'Sources: ', this.box)
    for (const { doc_id, title } of list) {
      const a = el('a', '', doc_id, p)
      a.href = '#doc=' + encodeURIComponent(doc_id)
      a.title = title
    }
  }
  note(text, wrong = false) {
    el('p', 'note', text, this.box)
    this.box.classList.toggle('wrong', wrong)
    if (wrong) $('state').textContent = text
  }
  take(e) {
    const d = e.choices?.[0]?.delta ?? {}, more = e.mypt ?? {}
    if (e.error) throw Error(e.error.message)
    if (d.reasoning_content) this.think(d.reasoning_content)
    if (d.content) { this.message.content += d.content; this.said.textContent += d.content }
    if (d.annotations) this.message.annotations = d.annotations
    if (d.tool_calls) this.note('The model called a tool: ' + d.tool_calls[0].function.name)
    if (more.trace) this.step(more.trace)
    if (more.sources) { this.sources(more.sources); if (more.stopped != 'answer') this.note(more.says, true) }
    if (e.choices?.[0]?.finish_reason == 'length') this.note('Cut off: no more room.')
    this.turn = more.messages ?? this.turn
    this.stopped = more.stopped ?? this.stopped
  }
}

// A question and its answer.
async function ask(text) {
  const me = article('me f-user', 'You'), question = { role: 'user', content: text }
  el('p', 'said', text, me)
  const reply = new Reply($('model').value), system = $('system').value.trim()
  const sent = [...(system ? [{ role: 'system', content: system }] : []), ...messages, question]
  const mode = document.querySelector('#modes :checked').value
  const body = { model: $('model').value, stream: true, messages: sent, temperature: Number($('temperature').value) || 0, mypt: { mode } }
  if ($('tokens').value) body.max_tokens = Number($('tokens').value)
  work = new AbortController()
  busy(true)
  try {
    for await (const e of events(await call('/v1/chat/completions', body, work.signal))) { const low = atEnd(); reply.take(e); if (low) toEnd() }
    if (reply.message.content.trim() && (reply.stopped ?? 'answer') == 'answer') {
      const turn = reply.turn ?? [question]      // without the answer where that was cut off
      messages.push(...turn, ...(turn.at(-1).role == 'assistant' ? [] : [reply.message]))
    }
    else if (reply.stopped == null) reply.note('The model said nothing.')
  } catch (e) {
    reply.note(work.signal.aborted ? 'Stopped.' : e.message, !work.signal.aborted)
    if (reply.message.content.trim() && work.signal.aborted) messages.push(question, reply.message)
  }
  reply.box.ariaBusy = 'false'
  busy(false)
  toEnd()
}
const atEnd = () => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight < 60
const toEnd = () => { $('log').scrollTop = $('log').scrollHeight }
function busy(on) {
  $('send').textContent = on ? 'Stop' : 'Send'
  $('state').textContent = on ? 'Answering' : ''
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
  document.onkeydown = e => { if (e.key == 'Escape' && work && !$('paper').open) work.abort() }
  $('fresh').onclick = () => { work?.abort(); messages = []; $('log').replaceChildren(); $('empty').hidden = false; $('ask').focus() }
  $('more').onclick = () => { const s = $('settings'); s.hidden = !s.hidden; $('more').ariaExpanded = String(!s.hidden) }
  $('paper-close').onclick = () => $('paper').close()
  $('paper').onclose = () => { if (location.hash) history.replaceState(null, '', location.pathname) }
  addEventListener('hashchange', showDocument)
  try {
    for (const m of (await (await call('/v1/models')).json()).data) el('option', '', m.id, $('model'))
    const docs = (await (await call('/v1/documents')).json()).data
    $('shelf').textContent = docs.length ? `${docs.length} document${docs.length == 1 ? '' : 's'} to look things up in.` : ''
    for (const i of document.querySelectorAll('#modes input')) i.disabled = i.value != 'chat' && !docs.length
  } catch (e) { $('state').textContent = e.message }
  showDocument()
}
start()
