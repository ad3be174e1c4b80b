// The live loss board: a picture that Python renews, and a button that ends the run and saves it.
// A kernel that trains handles no widget message, so the button interrupts it by way of the server, as the notebook's own ■ does;
// the training loop takes the first interrupt as "finish this step, save, leave".

const el = (tag, attrs = {}, ...kids) => {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v)
  e.append(...kids)
  return e
}

export default {                         // anywidget
  render({ model, el: host }) {
    const picture = el('div'), said = el('span', { class: 'said', role: 'status' })
    const button = el('button', { type: 'button', class: 'stop' }, 'Stop and save')
    host.classList.add('mypt', 'live')
    host.replaceChildren(el('div', { class: 'brake' }, button, said), picture)
    const draw = () => { picture.innerHTML = model.get('html'); readouts(picture) }   // made by board.py, where all content is escaped
    const settle = () => {
      if (model.get('state') !== 'done') return
      button.disabled = true; said.textContent = 'done'
    }
    button.addEventListener('click', () => {
      if (button.disabled || model.get('state') !== 'running') return
      button.disabled = true                                          // a second interrupt would not wait for the step
      said.textContent = 'finishing this step, then saving …'
      const kernel = model.widget_manager?.kernel
      if (!model.get('main')) return model.send({ stop: true })
      if (kernel?.interrupt) return kernel.interrupt().catch(help)
      model.send({ stop: true }); help()
    })
    const help = () => { said.textContent = 'this page cannot reach its kernel while a cell runs: press ■ in its toolbar, it saves too' }
    model.on('change:html', draw)
    model.on('change:state', settle)
    draw(); settle()
  }
}
