"""Make long instruction examples from long documents with a generator model (arXiv 2309.16039, App. D).

For each document, a random chunk that fits the generator is drawn. The generator writes a question about the chunk and
its answer, inside tags. In a second request it decides whether to keep them. The example is the whole document, cut to
the length of a row, with the question and the answer. So a model with a short context makes data for a long context.

There are four decisions:

- A reply is filed under the hash of its whole request (request_log.py). Chunk, prompt and seed depend only on the
  document's text. So after an interruption the same command makes the same requests, and sends only those without a
  reply. Changed settings need no check, because they make different requests.
- Results are taken in the order of the documents, whatever the concurrency, so the same replies give the same file.
- The chunk is drawn from the part of the document that the example keeps. Otherwise an example could ask about text
  that was cut away.
- The client is httpx with our own retries. The `openai` package is not used: it would be one more dependency, it
  ignores a Retry-After above a minute, and it does not count its retries. huggingface_hub installs httpx anyway.
"""
