// Delivers events to the analytics service at least once, and never makes the token endpoint wait for it.

const BATCH = 500;
const FIRST_DELAY_MS = 50;
const LONGEST_DELAY_MS = 2000;
const TIMEOUT_MS = 10_000;

export class Outbox {
  #queue = [];
  #frozen = []; // The batch under way. A retry carries these events and no others, as a sender that logged its message would.
  #delay = FIRST_DELAY_MS;
  #busy = false;
  #receiver = null;
  #idlers = [];

  constructor() {
    this.counts = { delivered: 0, rejected: 0, dropped: 0, posts: 0, retries: 0 };
  }

  get queued() {
    return this.#queue.length + this.#frozen.length;
  }

  // Events wait until a receiver is named. Only loopback: this is test equipment and its token is sent in the clear.
  sendTo(url, token) {
    if (new URL(url).hostname !== '127.0.0.1') throw new Error(`the receiver ${url} is not on 127.0.0.1`);
    this.#receiver = { url, token };
    this.#send();
  }

  push(event) {
    this.#queue.push(event);
    this.#send();
  }

  // Resolves once nothing waits for delivery any more.
  idle() {
    if (this.queued === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idlers.push(resolve));
  }

  async #send() {
    if (this.#busy || this.#receiver === null) return;
    this.#busy = true;
    while (this.queued > 0) {
      if (this.#frozen.length === 0) this.#frozen = this.#queue.splice(0, BATCH);
      if (await this.#post(this.#frozen)) {
        this.#frozen = [];
        this.#delay = FIRST_DELAY_MS;
      } else {
        this.counts.retries += 1;
        await new Promise((resolve) => setTimeout(resolve, this.#delay));
        this.#delay = Math.min(2 * this.#delay, LONGEST_DELAY_MS);
      }
    }
    this.#busy = false;
    for (const resolve of this.#idlers.splice(0)) resolve();
  }

  // True when the batch is done with: taken, or refused for good. 5xx, 429 and a broken connection are worth a retry.
  async #post(events) {
    this.counts.posts += 1;
    try {
      const answer = await fetch(this.#receiver.url, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: `Bearer ${this.#receiver.token}` },
        body: JSON.stringify({ events }),
        redirect: 'error',
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      const text = await answer.text();
      if (answer.status >= 500 || answer.status === 429) throw new Error(`status ${answer.status}`);
      if (answer.ok) {
        const rejected = JSON.parse(text).rejected?.length ?? 0;
        this.counts.rejected += rejected;
        this.counts.delivered += events.length - rejected;
      } else {
        this.counts.dropped += events.length;
        console.error(`${events.length} events refused for good: ${answer.status} ${text.slice(0, 500)}`);
      }
      return true;
    } catch (error) {
      console.error(`delivery failed: ${error.message}; ${this.queued} events wait`);
      return false;
    }
  }
}
