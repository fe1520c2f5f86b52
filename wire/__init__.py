"""What crosses a process boundary: messages, errors, the access token, and how a served process is started."""
