"""Two web consoles for operators: Admin acts, Ops only looks.

Each is a process of its own, started by `sqlqueue console admin|ops`, and needs the extra
`sqlqueue[consoles]`:

    launch.py     refuses what is not safe, starts the server
    gate.py       in front of every request: host, origin, token
    tokens.py     the token of a console, kept beside the queue file
    source.py     the queue a console shows, opened for one run of a page
    look.py       colours, spacing and small pieces that both share
    admin/, ops/  the pages, each with what it shows worked out in plain modules

Pages read through `inspection` and act through `operations`, as the command line does. A page's
numbers, rows and links are made by functions that know no Streamlit, so that they can be tried
without a browser.
"""
