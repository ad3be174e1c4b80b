// Markdown to elements. Whatever a text holds becomes text nodes, never HTML; pictures are named, not loaded.
'use strict'
const el = (tag, name = '', text = '', parent = null) => {
  const e = document.createElement(tag)
  if (name) e.className = name
  if (text) e.textContent = text
  parent?.append(e)
  return e
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/, HEAD = /^ {0,3}(#{1,6})\s+(.*)$/, RULE = /^ {0,3}(?:-[ -]*-[ -]*-|\*[ *]*\*[ *]*\*|_[ _]*_[ _]*_)[ \-*_]*$/
const ITEM = /^( *)(?:[-*+]|(\d{1,9})[.)])( +|$)/, ROW = /^ *\|?[ :|-]*-[ :|-]*$/
const blockStarts = l => FENCE.test(l) || HEAD.test(l) || RULE.test(l) || ITEM.test(l) || /^ {0,3}>/.test(l)
const cells = l => l.trim().replace(/^\||\|$/g, '').split('|')

function markdown(text, parent, depth = 0) {
  const lines = typeof text == 'string' ? text.replace(/\r\n?/g, '\n').split('\n') : text
  for (let i = 0; i < lines.length;) {
    const line = lines[i], fence = FENCE.exec(line), head = HEAD.exec(line)
    if (!line.trim()) { i++; continue }
    if (fence) i = codeBlock(lines, i, fence, parent)
    else if (head) { inline(head[2].replace(/\s+#+\s*$/, ''), el(`h${Math.min(6, head[1].length + 2)}`, '', '', parent)); i++ }
    else if (RULE.test(line)) { el('hr', '', '', parent); i++ }
    else if (depth < 8 && /^ {0,3}>/.test(line)) {
      const from = i
      while (i < lines.length && /^ {0,3}>/.test(lines[i])) i++
      markdown(lines.slice(from, i).map(l => l.replace(/^ {0,3}> ?/, '')), el('blockquote', '', '', parent), depth + 1)
    } else if (depth < 8 && ITEM.test(line)) i = list(lines, i, parent, depth)
    else if (line.includes('|') && lines[i + 1]?.includes('|') && ROW.test(lines[i + 1])) i = table(lines, i, parent)
    else {
      const from = i++
      while (i < lines.length && lines[i].trim() && !blockStarts(lines[i])) i++
      const p = el('p', '', '', parent)
      lines.slice(from, i).forEach((l, k) => { if (k) el('br', '', '', p); inline(l.trimEnd(), p) })
    }
  }
}

function codeBlock(lines, i, fence, parent) {
  const from = ++i
  while (i < lines.length && !(lines[i].trim().startsWith(fence[1]) && FENCE.test(lines[i]))) i++
  const box = el('div', 'code', '', parent), text = lines.slice(from, i).join('\n')
  el('code', '', text, el('pre', '', '', box)).parentElement.tabIndex = 0
  box.append(copyButton(() => text, fence[2] ? `Copy ${fence[2]}` : 'Copy'))
  return i + 1
}

function list(lines, i, parent, depth) {
  const first = ITEM.exec(lines[i]), kind = first[2] == null ? 'ul' : 'ol', box = el(kind, '', '', parent)
  if (first[2] > 1) box.start = Number(first[2])
  while (i < lines.length) {
    const m = ITEM.exec(lines[i])
    if (!m || m[1].length > first[1].length + 1 || m[1].length < first[1].length || (m[2] == null) != (kind == 'ul')) break
    const inside = [lines[i].slice(m[0].length)], indent = m[1].length + 2
    for (i++; i < lines.length; i++) {      // what is indented, or goes on with the paragraph, belongs to the item
      const blank = !lines[i].trim(), deep = lines[i].startsWith(' '.repeat(indent))
      if (blank ? !lines[i + 1]?.startsWith(' '.repeat(indent)) : !deep && (blockStarts(lines[i]) || !lines[i - 1].trim())) break
      inside.push(deep ? lines[i].slice(indent) : lines[i].trimStart())
    }
    markdown(inside, el('li', '', '', box), depth + 1)
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? '')) i++
  }
  return i
}

function table(lines, i, parent) {
  const t = el('table', '', '', el('div', 'wide', '', parent)), row = (l, tag, to) => {
    const tr = el('tr', '', '', to)
    for (const c of cells(l)) inline(c.trim(), el(tag, '', '', tr))
  }
  t.parentElement.tabIndex = 0
  row(lines[i], 'th', el('thead', '', '', t))
  const body = el('tbody', '', '', t)
  for (i += 2; i < lines.length && lines[i].includes('|'); i++) row(lines[i], 'td', body)
  return i
}

const SAFE = /^(?:https?:\/\/|mailto:)/i
function link(href, text, parent) {
  const a = el('a', '', text, parent)
  a.href = href
  a.target = '_blank'
  a.rel = 'noopener noreferrer'
  return a
}

function closing(text, from) {      // of a link's address, which may hold brackets itself
  for (let i = from, open = 1; i < text.length && i < from + 2000; i++) {
    if (text[i] == '(') open++
    else if (text[i] == ')' && !--open) return i
    else if (/[<>]/.test(text[i])) return -1
  }
  return -1
}

// Within a line: code, links, strong and emphasis. `none` remembers which mark has no partner from here on, so that no text takes more than linear time.
function inline(text, parent, depth = 0) {
  let plain = '', none = {}
  const flush = () => { if (plain) parent.append(plain); plain = '' }
  const find = (mark, from) => {
    if (mark in none) return -1
    const at = text.indexOf(mark, from)
    if (at < 0) none[mark] = true
    return at
  }
  for (let i = 0; i < text.length;) {
    const c = text[i], before = text[i - 1] ?? ' '
    if (c == '\\' && /[!-/:-@[-`{-~]/.test(text[i + 1] ?? '')) { plain += text[i + 1]; i += 2; continue }
    if (c == '`') {
      const run = /^`+/.exec(text.slice(i, i + 8))[0], end = find(run, i + run.length)
      if (end > 0) { flush(); el('code', '', text.slice(i + run.length, end).trim(), parent); i = end + run.length; continue }
    }
    if (c == '[' || c == '!' && text[i + 1] == '[') {
      const middle = find('](', i), end = middle < 0 ? -1 : closing(text, middle + 2)
      const label = text.slice(i + (c == '!' ? 2 : 1), middle)
      if (end > 0 && !label.includes('[')) {
        const href = text.slice(middle + 2, end).trim().split(/\s/)[0]
        flush()
        if (c == '!') el('span', 'picture', `[picture: ${label || href}]`, parent)
        else if (SAFE.test(href)) inline(label, link(href, '', parent), depth + 1)
        else inline(label, parent, depth + 1)
        i = end + 1
        continue
      }
    }
    if ((c == '*' || c == '_') && depth < 6 && !(c == '_' && /\w/.test(before))) {
      const mark = text[i + 1] == c ? c + c : c, end = find(mark, i + mark.length + 1)
      const fine = end > 0 && !/\s/.test(text[i + mark.length]) && !/\s/.test(text[end - 1]) && !(c == '_' && /\w/.test(text[end + mark.length] ?? ''))
      if (fine) { flush(); inline(text.slice(i + mark.length, end), el(mark.length == 2 ? 'strong' : 'em', '', '', parent), depth + 1); i = end + mark.length; continue }
      plain += mark
      i += mark.length
      continue
    }
    if (c == 'h' && /[\s(<]/.test(before)) {
      const m = /^https?:\/\/[^\s<>"'`]{1,400}/.exec(text.slice(i, i + 410)), href = m?.[0].replace(/[.,;:!?)\]*_]+$/, '')
      if (m) { flush(); link(href, href, parent); i += href.length; continue }
    }
    plain += c
    i++
  }
  flush()
}

function copyButton(text, name = 'Copy') {
  const b = el('button', 'copy', name)
  b.type = 'button'
  b.onclick = async () => {
    try { await navigator.clipboard.writeText(text()); b.textContent = 'Copied' } catch { b.textContent = 'Cannot copy' }
    setTimeout(() => { b.textContent = name }, 1500)
  }
  return b
}
