// Sets and their ends, through an unmodified nostr-tools: negentropy (NIP-77), vanish (NIP-62), crash and drain.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import * as nip17 from 'nostr-tools/nip17'
import { connect, count, hangUp, key, nobody, now, publish, put, query, reconcile, startRelay, subscribe, Wire } from './harness.mjs'

let relay, client
before(async () => {
  relay = await startRelay()
  client = await connect(relay.url)
})
after(async () => { hangUp(); await relay?.stop() })

function notes(who, length) {
  const t = now()
  return Array.from({ length }, (_, n) => who.sign({ kind: 1, created_at: t - 2 * n, content: `${n}` }))
}
const ids = events => new Set(events.map(e => e.id))

// ---------------------------------------------------------------- negentropy (NIP-77)

describe('negentropy', () => {
  test('finds exactly what each side lacks', async () => {
    const author = key()
    const all = notes(author, 300)
    const [theirs, ours] = [all.slice(0, 200), all.slice(100)]
    await put(client, ...theirs)
    const { need, have } = await reconcile(client, { authors: [author.pk] }, ours)
    assert.deepEqual(need, ids(all.slice(0, 100)))
    assert.deepEqual(have, ids(all.slice(200)))
  })

  test('of equal sets finds nothing, and of an empty relay set everything to send', async () => {
    const author = key()
    const all = notes(author, 50)
    const filter = { authors: [author.pk] }
    assert.deepEqual(await reconcile(client, filter, all), { need: new Set(), have: ids(all) })
    await put(client, ...all)
    assert.deepEqual(await reconcile(client, filter, all), { need: new Set(), have: new Set() })
  })

  test('honours the filter: kinds, times and tags', async () => {
    const author = key()
    const t = now() - 500
    const make = (kind, d, tags = []) => author.sign({ kind, created_at: t + d, tags })
    const [a, b, c] = [make(1, 0), make(1, 10, [['t', 'x']]), make(1111, 5)]
    await put(client, a, b, c)
    const need = async filter => (await reconcile(client, { authors: [author.pk], ...filter })).need
    assert.deepEqual(await need({ kinds: [1] }), ids([a, b]))
    assert.deepEqual(await need({ since: t + 5 }), ids([b, c]))
    assert.deepEqual(await need({ until: t + 5 }), ids([a, c]))
    assert.deepEqual(await need({ '#t': ['x'] }), ids([b]))
  })

  test('knows nothing of deleted, replaced, expired and ephemeral events', async () => {
    const author = key()
    const [gone, kept] = notes(author, 2)
    await put(client, gone, kept)
    const deletion = await put(client, author.sign({ kind: 5, tags: [['e', gone.id]] }))
    await put(client, author.sign({ kind: 10_002, created_at: now() - 9, content: 'old' }))
    const profile = await put(client, author.sign({ kind: 10_002, content: 'new' }))
    await publish(client, author.sign({ kind: 1, content: 'dead', tags: [['expiration', `${now() - 1}`]] }))
    await put(client, author.sign({ kind: 21_111 }))
    assert.deepEqual((await reconcile(client, { authors: [author.pk] })).need, ids([kept, deletion, profile]))
  })

  test('a gated id enters the reconciliation of its reader and of nobody else', async () => {
    const [from, to] = [key(), key()]
    const note = await put(client, from.sign({ kind: 1 }))
    const mail = await put(client, from.sign({ kind: 4, content: 'x?iv=y', tags: [['p', to.pk]] }))
    const filter = { authors: [from.pk] }
    assert.deepEqual((await reconcile(client, filter)).need, ids([note]))
    assert.deepEqual((await reconcile(await connect(relay.url, key()), filter)).need, ids([note]))
    assert.deepEqual((await reconcile(await connect(relay.url, to), filter)).need, ids([note, mail]))
    // Holding the id already must not reveal that the relay holds it too.
    assert.deepEqual((await reconcile(client, filter, [mail])).have, ids([mail]))
  })

  test('a hostile message is answered NEG-ERR and harms nobody', async () => {
    const wire = await Wire.open(relay.url)
    const hostile = [
      '61', '', 'zz', '6', '60', '62', '6100', '610000',
      '61000002ffffffffffffffff7f', '6100000281808080808080808000', '61000002bfffffff7f', '6100ff02', '610000038100',
      `610000${'01'}${'00'.repeat(15)}`, `61${'80'.repeat(40)}`, `6100000205${'ab'.repeat(64)}`,
    ]
    for (let n = 0; n < 40; n++) hostile.push('61' + nobody().slice(0, 2 + (n % 60)))
    for (const [n, message] of hostile.entries()) {
      if (wire.ended) break
      wire.send(['NEG-OPEN', `n${n}`, { kinds: [1] }, message])
      wire.send(['NEG-MSG', `n${n}`, message])
      wire.send(['NEG-CLOSE', `n${n}`])
    }
    const fresh = await Wire.open(relay.url)
    fresh.send(['NEG-OPEN', 'q', { kinds: [1] }, '61000002ffffffffffffffff7f'])
    assert.match((await fresh.take(f => f[1] === 'q', 'NEG-ERR'))[0], /^NEG-ERR$/)
    const author = key()
    const event = await put(client, author.sign({ kind: 1 }))
    assert.deepEqual((await reconcile(client, { authors: [author.pk] })).need, ids([event]))
    wire.close()
    fresh.close()
  })
})

// ---------------------------------------------------------------- request to vanish (NIP-62)

describe('a request to vanish', () => {
  async function life() {
    const who = key()
    const friend = key()
    const events = [
      who.sign({ kind: 1, created_at: now() - 50, content: 'a life' }),
      who.sign({ kind: 0, created_at: now() - 50, content: '{}' }),
      who.sign({ kind: 30_023, created_at: now() - 50, tags: [['d', 'x']] }),
      who.sign({ kind: 5, created_at: now() - 50, tags: [['e', nobody()]] }),
    ]
    const mail = nip17.wrapEvent(friend.sk, { publicKey: who.pk }, 'to you')
    await put(client, ...events, mail)
    return { who, events, mail }
  }

  for (const [what, target] of [['to this relay', () => relay.url], ['to all relays', () => 'ALL_RELAYS']]) {
    test(`${what} removes the author’s events and the mail to them, for good`, async () => {
      const { who, events, mail } = await life()
      const request = who.sign({ kind: 62, created_at: now() - 5, tags: [['relay', target()]], content: 'bye' })
      await put(client, request)
      const asWho = await connect(relay.url, who)
      const left = (await query(asWho, [{ authors: [who.pk] }, { ids: [mail.id] }])).ids
      assert.deepEqual(left.filter(id => id !== request.id), [])
      assert.deepEqual((await reconcile(client, { ids: events.map(e => e.id) })).need, new Set())
      for (const event of events) assert.equal((await publish(client, event)).ok, false, `kind ${event.kind} came back`)
      const before = who.sign({ kind: 1, created_at: request.created_at - 15, content: 'never sent before' })
      assert.equal((await publish(client, before)).ok, false, 'an older event, sent late')
      assert.equal((await count(client, [{ authors: [who.pk], kinds: [0, 1, 5, 30_023] }])).count, 0)
      const later = await put(client, who.sign({ kind: 1, content: 'a new life' }))
      assert.deepEqual((await query(client, [{ authors: [who.pk], kinds: [1] }])).ids, [later.id])
    })
  }

  test('to another relay changes nothing here', async () => {
    const { who, events } = await life()
    await publish(client, who.sign({ kind: 62, tags: [['relay', 'wss://elsewhere.example/']] }))
    assert.deepEqual((await query(client, [{ ids: events.map(e => e.id) }])).ids.sort(), [...ids(events)].sort())
  })

  test('is not undone by a deletion of the request', async () => {
    const { who, events } = await life()
    const request = await put(client, who.sign({ kind: 62, created_at: now() - 5, tags: [['relay', 'ALL_RELAYS']] }))
    await publish(client, who.sign({ kind: 5, tags: [['e', request.id]] }))
    assert.equal((await publish(client, events[0])).ok, false)
  })

  test('touches nobody else’s events', async () => {
    const { who } = await life()
    const friend = key()
    const reply = await put(client, friend.sign({ kind: 1, tags: [['p', who.pk]] }))
    await put(client, who.sign({ kind: 62, tags: [['relay', 'ALL_RELAYS']] }))
    assert.deepEqual((await query(client, [{ ids: [reply.id] }])).ids, [reply.id])
  })
})

// ---------------------------------------------------------------- crash and drain

describe('the process', () => {
  test('loses no acknowledged event by kill -9, and deletions stay in force', async () => {
    let own = await startRelay()
    try {
      const author = key()
      const writer = await connect(own.url)
      const all = notes(author, 60)
      const gone = author.sign({ kind: 1, content: 'gone' })
      await put(writer, gone)
      await put(writer, author.sign({ kind: 5, created_at: now() - 1000, tags: [['e', gone.id]] }))
      const acknowledged = []
      const sending = all.map(event => publish(writer, event).then(({ ok }) => { if (ok) acknowledged.push(event.id) }))
      await Promise.race(sending)
      own = await own.crashAndRestart()
      await Promise.allSettled(sending)
      const reader = await connect(own.url)
      const { ids: served } = await query(reader, [{ authors: [author.pk], kinds: [1] }])
      assert.ok(acknowledged.length >= 1)
      for (const id of acknowledged) assert.ok(served.includes(id), `${id} was acknowledged and is lost`)
      assert.equal((await publish(reader, gone)).ok, false)
    } finally {
      await own.stop()
    }
  })

  test('drains within its promised time at SIGTERM and ends with status 0', async () => {
    const own = await startRelay()
    try {
      const reader = await connect(own.url)
      const sub = subscribe(reader, [{ kinds: [1] }])
      await sub.settled()
      assert.deepEqual(await own.terminate(), { code: 0, signal: null })
      assert.ok(!own.stderr().includes('did not end in time'), own.stderr())
    } finally {
      await own.stop()
    }
  })
})
