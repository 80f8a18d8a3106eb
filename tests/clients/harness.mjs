// Starts the real relay binary and holds what every outside-client test needs.
//
// The relay under test is the program in SKEP_BIN; each test file runs its own, on a port of its own and
// with a data directory of its own. What must not happen here: a sleep that stands for "probably ready",
// a process ended by name, or a helper that repairs a client's behaviour on its way to the relay.

import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { schnorr } from '@noble/curves/secp256k1.js'
import { nip77 } from 'nostr-tools'
import { finalizeEvent, generateSecretKey, getPublicKey } from 'nostr-tools/pure'
import { Relay, useWebSocketImplementation } from 'nostr-tools/relay'
import WebSocket from 'ws'

useWebSocketImplementation(WebSocket)

// Nothing here is a measurement: each is for what must come, on a machine of any speed.
const READY_MS = 60_000
const STOP_MS = 60_000
const ANSWER_MS = 60_000

export const hex = bytes => Buffer.from(bytes).toString('hex')
export const sha256 = data => createHash('sha256').update(data).digest()
export const now = () => Math.floor(Date.now() / 1000)
export const nobody = () => hex(generateSecretKey())

/** Fails by name instead of hanging: no client here has a deadline of its own for every answer. */
export function within(promise, what, ms = ANSWER_MS) {
  let timer
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms: ${what}`)), ms)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** Repeats `attempt` until it returns something truthy. For facts that come with time (an expiry), not for readiness. */
export async function eventually(attempt, what, ms = 120_000, pause = 200) {
  const deadline = Date.now() + ms
  for (;;) {
    const got = await attempt()
    if (got) return got
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${what}`)
    await new Promise(resolve => setTimeout(resolve, pause))
  }
}

/**
 * Runs `attempt(expires)` with a time that is still to come when it is done; a machine too slow for that gets more of it.
 * Gives `[expires, what attempt returned]`.
 */
export async function beforeExpiry(attempt) {
  for (let seconds = 3; ; seconds *= 2) {
    const expires = now() + seconds
    const done = await attempt(expires).then(value => ({ value }), error => ({ error }))
    if (now() >= expires && seconds < 100) continue
    if (done.error) throw done.error
    return [expires, done.value]
  }
}

// ---------------------------------------------------------------- keys and events

export function key(sk = generateSecretKey()) {
  const pk = getPublicKey(sk)
  return { sk, pk, sign: template => finalizeEvent({ created_at: now(), tags: [], content: '', ...template }, sk) }
}

/** The NIP-OA tag by which `owner` attests `agentPk`. */
export function attest(owner, agentPk, conditions = '') {
  const digest = sha256(`nostr:agent-auth:${agentPk}:${conditions}`)
  return ['auth', owner.pk, conditions, hex(schnorr.sign(digest, owner.sk))]
}

// ---------------------------------------------------------------- the relay process

const running = new Set()
process.on('exit', () => running.forEach(child => child.kill('SIGKILL')))

function toml({ closed, members, admins, search, pow, limits, channels }) {
  const list = values => JSON.stringify(values)
  const lines = ['[relay]', 'name = "t"', `closed = ${closed}`, `members = ${list(members)}`]
  lines.push(`admins = ${list(admins)}`, `search = ${search}`, `min_pow = ${pow}`, '[relay.limits]')
  for (const [name, value] of Object.entries(limits)) lines.push(`${name} = ${value}`)
  for (const c of channels) {
    lines.push('[[relay.channels]]', `id = ${JSON.stringify(c.id)}`, `access = ${JSON.stringify(c.access)}`)
    lines.push(`members = ${list(c.members ?? [])}`, `admins = ${list(c.admins ?? [])}`)
  }
  return lines.join('\n') + '\n'
}

/** Starts a relay and returns when it says that it listens. */
export async function startRelay(options = {}) {
  const bin = process.env.SKEP_BIN
  if (!bin) throw new Error('SKEP_BIN must name the skep binary under test')
  const home = options.home ?? mkdtempSync(join(tmpdir(), 'skep-clients-'))
  const config = { closed: false, members: [], admins: [], search: true, pow: 0, channels: [], ...options }
  config.limits = { connections_per_ip: 1000, ...options.limits }
  const file = join(home, 'skep.toml')
  writeFileSync(file, toml(config))

  const args = ['relay', '--listen', '127.0.0.1:0', '--data', join(home, 'data'), '--config', file]
  const child = spawn(bin, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, HOME: home } })
  running.add(child)
  const stdout = []
  let stderr = ''
  child.stderr.on('data', chunk => { stderr = (stderr + chunk).slice(-8000) })
  const exited = new Promise(resolve => child.once('exit', (code, signal) => {
    running.delete(child)
    resolve({ code, signal })
  }))

  const ready = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', line => {
      stdout.push(line)
      const match = /^listening (ws:\/\/127\.0\.0\.1:\d+)\/? pubkey=([0-9a-f]{64})$/.exec(line)
      if (match) resolve({ url: match[1], pubkey: match[2] })
      else if (stdout.length === 1) reject(new Error(`unexpected first line on stdout: ${line}`))
    })
    child.once('error', reject)
    exited.then(({ code, signal }) => reject(new Error(`relay ended before it was ready (${code ?? signal}):\n${stderr}`)))
  })
  const { url, pubkey } = await within(ready, 'the ready line', READY_MS).catch(error => {
    child.kill('SIGKILL')
    throw error
  })

  return {
    url, pubkey, home, stdout,
    http: url.replace(/^ws/, 'http'),
    stderr: () => stderr,
    /** SIGTERM: the exit status. When its drain took longer than promised the relay says so on stderr. */
    async terminate() {
      child.kill('SIGTERM')
      return within(exited, 'exit after SIGTERM', STOP_MS).catch(error => { child.kill('SIGKILL'); throw error })
    },
    /** kill -9, then a new process on the same data. */
    async crashAndRestart() {
      child.kill('SIGKILL')
      await exited
      return startRelay({ ...options, home })
    },
    /** For `after` hooks: ends the process and removes its files. */
    async stop() {
      if (running.has(child)) child.kill('SIGKILL')
      await exited
      rmSync(home, { recursive: true, force: true })
    },
  }
}

// ---------------------------------------------------------------- nostr-tools as a client

const open = new Set()
export const hangUp = () => { for (const relay of open) relay.close(); open.clear() }

/** A nostr-tools connection, authenticated by each of `keys`. */
export async function connect(url, ...keys) {
  const relay = await within(Relay.connect(url), 'websocket upgrade')
  relay.onnotice = () => {}
  relay.publishTimeout = ANSWER_MS
  open.add(relay)
  for (const k of keys) await authenticate(relay, k)
  return relay
}

/**
 * NIP-42 by nostr-tools. A round trip first, because the challenge comes unasked; and the library caches
 * one authentication per connection, so its cache is cleared for the next key.
 */
export async function authenticate(relay, who, extraTags = []) {
  if (!relay.challenge) await query(relay, [{ ids: [nobody()], limit: 1 }])
  relay.authPromise = undefined
  return within(relay.auth(async t => who.sign({ ...t, tags: [...t.tags, ...extraTags] })), 'OK to AUTH')
}

/** The relay's answer to an EVENT: `{ ok, message }`. */
export function publish(relay, event) {
  return within(relay.publish(event).then(
    message => ({ ok: true, message }), error => ({ ok: false, message: error.message })), `OK to kind ${event.kind}`)
}

/** Publishes and insists. */
export async function put(relay, ...events) {
  for (const event of events) {
    const { ok, message } = await publish(relay, event)
    if (!ok) throw new Error(`kind ${event.kind} was refused: ${message}`)
  }
  return events.at(-1)
}

/** A subscription that remembers everything. `eose` and `closed` are what the relay said, never the library's own timer. */
export function subscribe(relay, filters) {
  const seen = []
  const waiting = new Set()
  const wake = () => waiting.forEach(check => check())
  const state = { seen, eose: false, closed: null }
  const sub = relay.subscribe(filters, {
    eoseTimeout: 120_000,
    onevent: event => { seen.push(event); wake() },
    oninvalidevent: event => { state.invalid ??= event; wake() },
    oneose: () => { state.eose = true; wake() },
    onclose: reason => { state.closed ??= reason; clearTimeout(sub.eoseTimeoutHandle); wake() },
  })
  const when = (test, what) => within(new Promise(resolve => {
    const check = () => { if (state.invalid || test()) { waiting.delete(check); resolve() } }
    waiting.add(check)
    check()
  }), what).then(() => {
    if (state.invalid) throw new Error(`served, but unasked for or not valid: ${JSON.stringify(state.invalid)}`)
  })
  return Object.assign(state, {
    settled: () => when(() => state.eose || state.closed !== null, `EOSE or CLOSED for ${JSON.stringify(filters)}`),
    /** Everything delivered up to and with the event `id`: what is not in it was not sent before it. */
    async upTo(id) {
      await when(() => seen.some(e => e.id === id), `live event ${id}`)
      return seen.slice(0, seen.findIndex(e => e.id === id) + 1).map(e => e.id)
    },
    stop: () => sub.close(),
  })
}

/** A stored query: `{ events, closed }`, where `closed` is the reason of a refusal or null. */
export async function query(relay, filters) {
  const sub = subscribe(relay, filters)
  await sub.settled()
  const { seen: events, eose } = sub
  const closed = eose ? null : sub.closed
  if (eose) sub.stop()
  return { events, ids: events.map(e => e.id), closed }
}

/** COUNT: `{ count, hll }`, or `{ closed }` when refused. */
export function count(relay, filters) {
  return within(relay.countWithHLL(filters, {}).catch(error => ({ closed: error.message })), 'COUNT')
}

/** NIP-77 by nostr-tools: the ids that the relay has and `local` lacks, and the reverse. */
export function reconcile(relay, filter, local = []) {
  const storage = new nip77.NegentropyStorageVector()
  for (const event of local) storage.insert(event.created_at, event.id)
  storage.seal()
  const need = new Set()
  const have = new Set()
  return within(new Promise((resolve, reject) => {
    const sync = new nip77.NegentropySync(relay, storage, filter, {
      onneed: id => need.add(id),
      onhave: id => have.add(id),
      onclose: reason => (reason ? reject(new Error(reason)) : resolve({ need, have })),
    })
    sync.start()
  }), 'negentropy')
}

// ---------------------------------------------------------------- bare frames

/** A raw WebSocket, for frames that no client library would send and answers that one would hide. */
export class Wire {
  static async open(url) {
    const wire = new Wire()
    wire.frames = []
    wire.waiting = new Set()
    wire.ended = false
    wire.socket = new WebSocket(url, { perMessageDeflate: false })
    wire.socket.on('message', data => { wire.frames.push(JSON.parse(data)); wire.wake() })
    wire.socket.on('close', () => { wire.ended = true; wire.wake() })
    wire.socket.on('error', () => {})
    await within(new Promise((resolve, reject) => {
      wire.socket.once('open', resolve)
      wire.socket.once('close', () => reject(new Error('refused')))
    }), 'websocket upgrade')
    return wire
  }

  wake() { this.waiting.forEach(check => check()) }
  send(frame) { this.socket.send(typeof frame === 'string' || Buffer.isBuffer(frame) ? frame : JSON.stringify(frame)) }
  close() { this.socket.terminate() }

  /** Takes the first frame that passes `test` out of the queue; null when the relay hung up instead. */
  take(test, what) {
    return within(new Promise(resolve => {
      const check = () => {
        const at = this.frames.findIndex(test)
        if (at < 0 && !this.ended) return
        this.waiting.delete(check)
        resolve(at < 0 ? null : this.frames.splice(at, 1)[0])
      }
      this.waiting.add(check)
      check()
    }), what)
  }

  /** Sends and returns every frame about `id` up to the one that ends the exchange. */
  async ask(frame, id = frame[1]) {
    this.send(frame)
    const all = []
    for (;;) {
      const answer = await this.take(f => f[1] === id, JSON.stringify(frame).slice(0, 80))
      if (answer) all.push(answer)
      if (!answer || answer[0] !== 'EVENT') return all
    }
  }

  async publish(event) {
    this.send(['EVENT', event])
    const answer = await this.take(f => f[0] === 'OK' && f[1] === event.id, 'OK')
    return answer ? { ok: answer[2], message: answer[3] } : { ok: false, message: 'hung up' }
  }
}
