"""The contract that server, worker and client share: messages, framing, layout, the job and the errors."""
