"Rows of messages for tests of conversion."


def talk(*messages, **row):
    "A row of messages: user and assistant in turn, unless they are objects."
    roles = ('user', 'assistant')
    said = [
        m if isinstance(m, dict) else dict(role=roles[i % 2], content=m)
        for i, m in enumerate(messages)
    ]
    return dict(messages=said) | row
