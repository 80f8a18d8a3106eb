// Rules that a relay may set, through an unmodified nostr-tools: work (NIP-13), rates, membership by invitation (NIP-43),
// and queries over HTTP (NIP-98).

import assert from 'node:assert/strict'
import { after, describe, test } from 'node:test'
import * as nip13 from 'nostr-tools/nip13'
import * as nip98 from 'nostr-tools/nip98'
import { connect, eventually, hangUp, key, now, publish, put, query, startRelay } from './harness.mjs'

const relays = []
after(async () => { hangUp(); await Promise.all(relays.map(relay => relay.stop())) })

async function start(options) {
  const relay = await startRelay(options)
  relays.push(relay)
  return relay
}

let serial = 0
const note = (who, change = {}) => who.sign({ kind: 1, content: `${serial++}`, ...change })

// ---------------------------------------------------------------- NIP-13

test('an event with too little work is refused with pow:, one with enough is taken; gated kinds need none', async () => {
  const DIFFICULTY = 8
  const relay = await start({ pow: DIFFICULTY })
  const [client, who] = [await connect(relay.url), key()]
  let lazy = note(who)
  while (nip13.getPow(lazy.id) >= DIFFICULTY) lazy = note(who)
  const refused = await publish(client, lazy)
  assert.equal(refused.ok, false)
  assert.match(refused.message, /^pow: .*\b8\b/)
  const mined = nip13.minePow({ kind: 1, content: 'worth it', created_at: now(), tags: [], pubkey: who.pk }, DIFFICULTY)
  const event = await put(client, who.sign({ kind: 1, content: mined.content, created_at: mined.created_at, tags: mined.tags }))
  assert.ok(nip13.getPow(event.id) >= DIFFICULTY)
  assert.deepEqual((await query(client, [{ authors: [who.pk] }])).ids, [event.id])
  await put(await connect(relay.url, who), who.sign({ kind: 4, content: 'x?iv=x', tags: [['p', key().pk]] }))
})

// ---------------------------------------------------------------- rates

describe('over its rate', () => {
  // A rate of one a second lets ten pass at once.
  const BURST = 10

  /** Sends more than pass, and insists that the rest is refused in words, that nobody hung up, and that it ends. */
  async function flood(send, isRefused) {
    const answers = await Promise.all(Array.from({ length: 4 * BURST }, send))
    const refused = answers.filter(isRefused)
    assert.ok(refused.length > 0 && refused.length <= 3 * BURST, `${refused.length} refused`)
    await eventually(async () => !isRefused(await send()), 'a token')
    return refused
  }
  const isLimited = ({ ok, message }) => !ok && (assert.match(message, /^rate-limited:/), true)

  test('an event is refused with rate-limited:, by connection', async () => {
    const relay = await start({ limits: { events_per_second: 1 } })
    const [a, b] = [await connect(relay.url), await connect(relay.url)]
    await flood(() => publish(a, note(key())), isLimited)
    await put(b, note(key()))
  })

  test('an event is refused with rate-limited:, by address, all connections together', async () => {
    const relay = await start({ limits: { events_per_second_per_ip: 1 } })
    const clients = [await connect(relay.url), await connect(relay.url)]
    await flood(() => publish(clients[serial % 2], note(key())), isLimited)
  })

  test('an event is refused with rate-limited:, by author, and no other author’s', async () => {
    const relay = await start({ limits: { events_per_second_per_pubkey: 1 } })
    const clients = [await connect(relay.url), await connect(relay.url)]
    const who = key()
    await flood(() => publish(clients[serial % 2], note(who)), isLimited)
    await put(clients[0], note(key()))
  })

  test('a request is CLOSED with rate-limited:', async () => {
    const relay = await start({ limits: { requests_per_second: 1 } })
    const client = await connect(relay.url)
    const isClosed = ({ closed }) => closed !== null && (assert.match(closed, /^rate-limited:/), true)
    await flood(() => query(client, [{ kinds: [1] }]), isClosed)
  })

  test('an HTTP request is answered 429, with a Retry-After that is true', async () => {
    const relay = await start({ limits: { http_requests_per_second_per_ip: 1 } })
    const refused = await flood(() => fetch(`${relay.http}/health`), ({ status }) => status === 429)
    const { headers } = refused[0]
    assert.equal(headers.get('retry-after'), '1')
    assert.equal(headers.get('access-control-allow-origin'), '*')
    assert.match((await refused[0].json()).error, /^rate-limited:/)
  })
})

// ---------------------------------------------------------------- NIP-43

test('who has a claim joins a closed relay, is listed, reads and writes, and leaves again', async () => {
  const [admin, guest] = [key(), key()]
  const relay = await start({ closed: true, admins: [admin.pk] })
  const manage = async (method, ...params) => {
    const payload = { method, params }
    const sign = t => admin.sign({ ...t, tags: [...t.tags, ['nonce', `${serial++}`]] })
    const authorization = await nip98.getToken(`${relay.http}/`, 'POST', sign, true, payload)
    const headers = { 'content-type': 'application/nostr+json+rpc', authorization }
    const answer = await fetch(`${relay.http}/`, { method: 'POST', headers, body: JSON.stringify(payload) })
    return (await answer.json()).result
  }
  const claim = await manage('createclaim', 'for a guest')
  assert.ok((await manage('listclaims')).some(row => row.claim === claim))
  const client = await connect(relay.url, guest)
  const join = code => publish(client, guest.sign({ kind: 28_934, tags: [['-'], ['claim', code]] }))
  const members = async () => {
    const { events } = await query(await connect(relay.url, admin), [{ kinds: [13_534], authors: [relay.pubkey] }])
    return events.flatMap(event => event.tags.filter(([name]) => name === 'member').map(([, pk]) => pk))
  }

  assert.match((await publish(client, note(guest))).message, /^restricted:/)
  assert.match((await join('not a claim')).message, /^restricted:/)
  const joined = await join(claim)
  assert.equal(joined.ok, true, joined.message)
  assert.match((await join(claim)).message, /^duplicate:/)
  assert.deepEqual(await members(), [guest.pk])
  const mine = await put(client, note(guest))
  assert.deepEqual((await query(client, [{ kinds: [1] }])).ids, [mine.id])
  assert.deepEqual((await query(client, [{ kinds: [28_934] }])).ids, [], 'a request to join is shown to nobody')

  const left = await publish(client, guest.sign({ kind: 28_936, tags: [['-']] }))
  assert.equal(left.ok, true, left.message)
  assert.deepEqual(await members(), [])
  assert.match((await publish(client, note(guest))).message, /^restricted:/)
  assert.match((await query(client, [{ kinds: [1] }])).closed, /^restricted:/)
  await manage('revokeclaim', claim)
  assert.match((await join(claim)).message, /^restricted:/, 'a claim that was taken back')
})

// ---------------------------------------------------------------- queries over HTTP

describe('POST /query', () => {
  const [sender, recipient] = [key(), key()]
  let relay, client, wrap, open
  const ready = async () => {
    if (relay) return
    relay = await start({})
    client = await connect(relay.url)
    wrap = await put(client, sender.sign({ kind: 1059, content: 'sealed', tags: [['p', recipient.pk]] }))
    open = await put(client, note(sender))
  }
  const tokenFor = (who, filter, path = '/query') => {
    const sign = t => who.sign({ ...t, tags: [...t.tags, ['nonce', `${serial++}`]] })
    return nip98.getToken(relay.http + path, 'POST', sign, true, filter)
  }
  const ask = (filter, authorization, path = '/query') => fetch(relay.http + path, {
    method: 'POST', body: JSON.stringify(filter), headers: { ...(authorization && { authorization }) },
  })
  const lines = async answer => {
    assert.equal(answer.status, 200)
    assert.match(answer.headers.get('content-type'), /^application\/x-ndjson/)
    return (await answer.text()).split('\n').filter(Boolean).map(line => JSON.parse(line))
  }

  test('answers one event a line; a gated one to its recipient’s token only', async () => {
    await ready()
    const filter = { authors: [sender.pk] }
    const ids = async who => (await lines(await ask(filter, who && await tokenFor(who, filter)))).map(event => event.id).sort()
    assert.deepEqual(await ids(null), [open.id])
    assert.deepEqual(await ids(key()), [open.id])
    assert.deepEqual(await ids(recipient), [open.id, wrap.id].sort())
    const [event] = await lines(await ask({ ids: [open.id] }))
    assert.deepEqual(event, JSON.parse(JSON.stringify(open)), 'the event as it was published')
  })

  test('of gated kinds alone needs a token; a token for another body or path, or used twice, is 401', async () => {
    await ready()
    const filter = { kinds: [1059] }
    assert.equal((await ask(filter)).status, 401)
    const token = await tokenFor(recipient, filter)
    assert.deepEqual((await lines(await ask(filter, token))).map(event => event.id), [wrap.id])
    assert.equal((await ask(filter, token)).status, 401, 'used twice')
    assert.equal((await ask(filter, await tokenFor(recipient, { kinds: [4] }))).status, 401, 'another body')
    assert.equal((await ask(filter, await tokenFor(recipient, filter, '/count'))).status, 401, 'another path')
    const counted = await ask(filter, await tokenFor(recipient, filter, '/count'), '/count')
    assert.deepEqual(await counted.json(), { count: 1 })
  })

  test('answers 12 MB whole', async () => {
    await ready()
    const author = key()
    const ids = []
    for (let n = 0; n < 60; n++) {
      ids.push((await put(client, note(author, { content: `${n} ${'x'.repeat(200_000)}`, created_at: now() - 60 + n }))).id)
    }
    const got = await lines(await ask({ authors: [author.pk] }))
    assert.deepEqual(got.map(event => event.id), ids.reverse(), 'newest first')
  })
})
