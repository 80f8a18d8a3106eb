// Events through an unmodified nostr-tools: publish, subscribe, replace, delete, expire, count, search, NIP-44.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { decrypt, encrypt, getConversationKey } from 'nostr-tools/nip44'
import { computeOffset, feedEvent, hllEncode, newHll } from 'nostr-tools/nip45'
import {
  beforeExpiry, connect, count, eventually, hangUp, key, nobody, now, publish, put, query, startRelay, subscribe,
} from './harness.mjs'

let relay, client, other
before(async () => {
  relay = await startRelay()
  client = await connect(relay.url)
  other = await connect(relay.url)
})
after(async () => { hangUp(); await relay?.stop() })

const byId = (a, b) => (a.id < b.id ? -1 : 1)

// ---------------------------------------------------------------- publish and subscribe

test('stdout carries the ready line and nothing else', async () => {
  await put(client, key().sign({ kind: 1, content: 'noise' }))
  assert.equal(relay.stdout.length, 1)
})

test('an accepted event is served as it was signed, to everyone', async () => {
  const event = key().sign({ kind: 1, content: 'line\nbreak "quote" \\ tab\t é 🐝', tags: [['t', 'hive', 'third', ''], ['alt']] })
  assert.deepEqual(await publish(client, event), { ok: true, message: '' })
  const { events } = await query(other, [{ ids: [event.id] }])
  const { id, pubkey, created_at, kind, tags, content, sig } = event
  assert.deepEqual(JSON.parse(JSON.stringify(events)), [{ id, pubkey, created_at, kind, tags, content, sig }])
})

test('an event sent again is answered duplicate: and stays one event', async () => {
  const event = key().sign({ kind: 1 })
  await put(client, event)
  const again = await publish(other, event)
  assert.equal(again.ok, true)
  assert.match(again.message, /^duplicate:/)
  assert.equal((await query(client, [{ ids: [event.id] }])).events.length, 1)
})

test('an event with a wrong id or a wrong signature is invalid: and not stored', async () => {
  const author = key()
  const good = author.sign({ kind: 1, content: 'a' })
  const stranger = author.sign({ kind: 1, content: 'b' })
  for (const bad of [{ ...good, content: 'c' }, { ...good, sig: stranger.sig }, { ...good, pubkey: key().pk }]) {
    const { ok, message } = await publish(client, bad)
    assert.equal(ok, false)
    assert.match(message, /^invalid:/)
  }
  assert.deepEqual((await query(client, [{ authors: [author.pk] }])).ids, [])
})

test('stored events come newest first, ties by lowest id, then EOSE, then live events', async () => {
  const author = key()
  const t = now() - 100
  const tied = [1, 2, 3, 4].map(n => author.sign({ kind: 1, created_at: t, content: `${n}` })).sort(byId)
  const newer = author.sign({ kind: 1, created_at: t + 5 })
  const older = author.sign({ kind: 1, created_at: t - 5 })
  await put(client, tied[2], older, tied[0], newer, tied[3], tied[1])
  const sub = subscribe(other, [{ authors: [author.pk] }])
  await sub.settled()
  assert.deepEqual(sub.seen.map(e => e.id), [newer, ...tied, older].map(e => e.id))
  const live = await put(client, author.sign({ kind: 1, created_at: t + 1, content: 'live' }))
  assert.equal((await sub.upTo(live.id)).length, 7)
})

test('limit takes the newest, ties by lowest id, and counts for each filter alone', async () => {
  const [a, b] = [key(), key()]
  const t = now() - 50
  const notes = who => [0, 0, 1].map((d, n) => who.sign({ kind: 1, created_at: t + d, content: `${n}` }))
  const ofA = notes(a)
  const ofB = notes(b)
  await put(client, ...ofA, ...ofB)
  const best = all => [all[2], ...all.slice(0, 2).sort(byId)].map(e => e.id)
  assert.deepEqual((await query(client, [{ authors: [a.pk], limit: 2 }])).ids, best(ofA).slice(0, 2))
  const both = await query(client, [{ authors: [a.pk], limit: 1 }, { authors: [b.pk], limit: 2 }])
  assert.deepEqual(both.ids.sort(), [best(ofA)[0], ...best(ofB).slice(0, 2)].sort())
})

test('limit 0 is legal: no stored event, EOSE, then live events', async () => {
  const author = key()
  await put(client, author.sign({ kind: 1, content: 'stored' }))
  const sub = subscribe(other, [{ authors: [author.pk], limit: 0 }])
  await sub.settled()
  assert.equal(sub.eose, true)
  assert.deepEqual(sub.seen, [])
  const live = await put(client, author.sign({ kind: 1, content: 'live' }))
  assert.deepEqual(await sub.upTo(live.id), [live.id])
})

test('an event that matches two filters of one REQ is sent once, stored and live', async () => {
  const author = key()
  const stored = await put(client, author.sign({ kind: 1, content: 'x', tags: [['t', 'twice']] }))
  const sub = subscribe(other, [{ authors: [author.pk] }, { ids: [stored.id] }, { kinds: [1], authors: [author.pk], '#t': ['twice'] }])
  await sub.settled()
  const live = await put(client, author.sign({ kind: 1, content: 'y', tags: [['t', 'twice']] }))
  const last = await put(client, author.sign({ kind: 1, content: 'z' }))
  assert.deepEqual(await sub.upTo(last.id), [stored.id, live.id, last.id])
})

test('conditions of a filter are AND, filters are OR', async () => {
  const [a, b] = [key(), key()]
  const t = now() - 20
  const red = a.sign({ kind: 1, created_at: t, tags: [['t', 'red']] })
  const blue = a.sign({ kind: 1111, created_at: t + 1, tags: [['t', 'blue']] })
  const foreign = b.sign({ kind: 1, created_at: t + 2, tags: [['t', 'red']] })
  await put(client, red, blue, foreign)
  const ids = async (...filters) => (await query(client, filters)).ids.sort()
  assert.deepEqual(await ids({ authors: [a.pk], '#t': ['red'] }), [red.id])
  assert.deepEqual(await ids({ authors: [a.pk], '#t': ['red', 'blue'] }), [red.id, blue.id].sort())
  assert.deepEqual(await ids({ authors: [a.pk], kinds: [1111] }, { authors: [b.pk], kinds: [1] }), [blue.id, foreign.id].sort())
  assert.deepEqual(await ids({ authors: [a.pk, b.pk], since: t + 1, until: t + 1 }), [blue.id])
})

test('an empty array in a filter matches nothing, stored, live and in COUNT', async () => {
  const author = key()
  await put(client, author.sign({ kind: 1 }))
  for (const empty of [{ kinds: [] }, { ids: [] }, { authors: [] }, { authors: [author.pk], '#t': [] }]) {
    const sub = subscribe(client, [empty])
    await sub.settled()
    assert.equal(sub.eose, true, JSON.stringify(empty))
    const marker = subscribe(client, [{ authors: [author.pk], since: now() }])
    const live = await put(other, author.sign({ kind: 1, content: JSON.stringify(empty) }))
    await marker.upTo(live.id)
    assert.deepEqual(sub.seen, [])
    assert.equal((await count(client, [empty])).count, 0)
    sub.stop()
    marker.stop()
  }
})

test('an empty string is a tag value like any other', async () => {
  const author = key()
  const blank = await put(client, author.sign({ kind: 1, tags: [['t', '']] }))
  await put(client, author.sign({ kind: 1, tags: [['t', 'full']] }), author.sign({ kind: 1, tags: [['t']], content: 'no value' }))
  assert.deepEqual((await query(client, [{ authors: [author.pk], '#t': [''] }])).ids, [blank.id])
})

test('a new REQ under an open id replaces the old one', async () => {
  const [a, b] = [key(), key()]
  const first = subscribe(client, [{ authors: [a.pk] }])
  await first.settled()
  const sub = client.subscribe([{ authors: [b.pk] }], { id: [...client.openSubs.keys()].at(-1), onevent: e => seen.push(e.id) })
  const seen = []
  const marker = subscribe(client, [{ authors: [b.pk] }])
  await marker.settled()
  await put(other, a.sign({ kind: 1 }))
  const live = await put(other, b.sign({ kind: 1 }))
  // Events come in order, the copies of one event for two subscriptions in any.
  const next = await put(other, b.sign({ kind: 1, content: 'next' }))
  await marker.upTo(next.id)
  assert.equal(seen[0], live.id)
  assert.deepEqual(first.seen, [])
  sub.close()
})

test('an ephemeral event reaches who listens and is never stored', async () => {
  const author = key()
  const sub = subscribe(other, [{ authors: [author.pk] }])
  await sub.settled()
  const event = await put(client, author.sign({ kind: 21_111, content: 'here' }))
  assert.deepEqual(await sub.upTo(event.id), [event.id])
  assert.deepEqual((await query(client, [{ ids: [event.id] }])).ids, [])
  assert.deepEqual((await query(client, [{ kinds: [21_111], authors: [author.pk] }])).ids, [])
  assert.equal((await count(client, [{ authors: [author.pk] }])).count, 0)
})

test('an AUTH event is neither stored nor passed on, however it is sent', async () => {
  const author = key()
  const sub = subscribe(other, [{ authors: [author.pk] }])
  await sub.settled()
  const auth = author.sign({ kind: 22_242, tags: [['relay', relay.url], ['challenge', 'x']] })
  await publish(client, auth)
  const asClient = await connect(relay.url, author)
  const marker = await put(asClient, author.sign({ kind: 1 }))
  assert.deepEqual(await sub.upTo(marker.id), [marker.id])
  assert.deepEqual((await query(asClient, [{ kinds: [22_242] }])).ids, [])
})

// ---------------------------------------------------------------- replaceable and addressable

test('a replaced event is served in its newest version only', async () => {
  for (const kind of [0, 3, 10_002]) {
    const author = key()
    const t = now() - 100
    const versions = [t, t + 2, t + 1].map(created_at => author.sign({ kind, created_at, content: '{}' }))
    for (const event of versions) await publish(client, event)
    assert.deepEqual((await query(client, [{ authors: [author.pk] }])).ids, [versions[1].id], `kind ${kind}`)
    assert.deepEqual((await query(client, [{ ids: versions.map(e => e.id) }])).ids, [versions[1].id])
    assert.equal((await count(client, [{ kinds: [kind], authors: [author.pk] }])).count, 1)
  }
})

test('of two versions with one created_at the lowest id wins, in either order of delivery', async () => {
  for (const order of [[0, 1], [1, 0]]) {
    const author = key()
    const t = now() - 10
    const pair = ['a', 'b'].map(content => author.sign({ kind: 10_002, created_at: t, content })).sort(byId)
    for (const n of order) await publish(client, pair[n])
    assert.deepEqual((await query(client, [{ authors: [author.pk] }])).ids, [pair[0].id])
  }
})

test('addressable events replace by kind, author and d, and no d is an empty d', async () => {
  const author = key()
  const t = now() - 100
  const make = (created_at, tags) => author.sign({ kind: 30_023, created_at, tags })
  const [noD, emptyD, x1, x2] = [make(t, []), make(t + 1, [['d', '']]), make(t, [['d', 'x']]), make(t + 1, [['d', 'x'], ['d', 'y']])]
  await put(client, noD, emptyD, x1, x2, author.sign({ kind: 30_024, created_at: t, tags: [['d', 'x']] }))
  assert.deepEqual((await query(client, [{ kinds: [30_023], authors: [author.pk] }])).ids.sort(), [emptyD.id, x2.id].sort())
  assert.deepEqual((await query(client, [{ kinds: [30_023], authors: [author.pk], '#d': ['x'] }])).ids, [x2.id])
})

test('two 301-character d values that differ at the end are two addresses', async () => {
  const author = key()
  const stem = 'd'.repeat(300)
  const [a, b] = ['a', 'b'].map(end => author.sign({ kind: 30_078, tags: [['d', stem + end]] }))
  await put(client, a, b)
  assert.deepEqual((await query(client, [{ kinds: [30_078], authors: [author.pk] }])).ids.sort(), [a.id, b.id].sort())
  assert.deepEqual((await query(client, [{ authors: [author.pk], '#d': [stem + 'b'] }])).ids, [b.id])
  await put(client, author.sign({ kind: 5, tags: [['a', `30078:${author.pk}:${stem}a`]] }))
  assert.deepEqual((await query(client, [{ kinds: [30_078], authors: [author.pk] }])).ids, [b.id])
})

// ---------------------------------------------------------------- deletion (NIP-09)

test('a deletion by e removes the author’s own event, is served itself, and the event can’t come back', async () => {
  const author = key()
  const event = await put(client, author.sign({ kind: 1, content: 'regret' }))
  const deletion = await put(client, author.sign({ kind: 5, tags: [['e', event.id], ['k', '1']] }))
  assert.deepEqual((await query(other, [{ ids: [event.id] }])).ids, [])
  assert.deepEqual((await query(other, [{ authors: [author.pk] }])).ids, [deletion.id])
  const again = await publish(other, event)
  assert.equal(again.ok, false)
  assert.match(again.message, /^(blocked|invalid|restricted|duplicate|error):/)
  assert.equal((await count(other, [{ ids: [event.id] }])).count, 0)
})

test('nobody deletes another author’s event, by e or by a, known or not yet known', async () => {
  const [author, thief] = [key(), key()]
  const known = await put(client, author.sign({ kind: 1 }))
  const page = await put(client, author.sign({ kind: 30_023, tags: [['d', 'page']], created_at: now() - 5 }))
  const later = author.sign({ kind: 1, content: 'not yet sent' })
  await publish(other, thief.sign({ kind: 5, tags: [['e', known.id], ['e', later.id], ['a', `30023:${author.pk}:page`]] }))
  await put(client, later)
  const { ids } = await query(client, [{ authors: [author.pk] }])
  assert.deepEqual(ids.sort(), [known.id, page.id, later.id].sort())
})

test('an author’s own deletion of an event not yet known keeps it out', async () => {
  const author = key()
  const event = author.sign({ kind: 1, content: 'still to come' })
  await put(client, author.sign({ kind: 5, tags: [['e', event.id]] }))
  assert.equal((await publish(client, event)).ok, false)
  assert.deepEqual((await query(client, [{ ids: [event.id] }])).ids, [])
})

test('a deletion by a reaches up to its created_at; a newer version is not refused', async () => {
  for (const [kind, d] of [[30_023, 'post'], [10_002, '']]) {
    const author = key()
    const t = now() - 100
    const make = created_at => author.sign({ kind, created_at, tags: d ? [['d', d]] : [] })
    const [old, between, newer] = [make(t), make(t + 5), make(t + 20)]
    await put(client, old)
    await put(client, author.sign({ kind: 5, created_at: t + 10, tags: [['a', `${kind}:${author.pk}:${d}`]] }))
    assert.deepEqual((await query(client, [{ kinds: [kind], authors: [author.pk] }])).ids, [])
    assert.equal((await publish(client, old)).ok, false)
    assert.equal((await publish(client, between)).ok, false)
    await put(client, newer)
    assert.deepEqual((await query(client, [{ kinds: [kind], authors: [author.pk] }])).ids, [newer.id])
  }
})

test('a deletion of a deletion has no effect', async () => {
  const author = key()
  const event = await put(client, author.sign({ kind: 1 }))
  const deletion = await put(client, author.sign({ kind: 5, tags: [['e', event.id]] }))
  await publish(client, author.sign({ kind: 5, tags: [['e', deletion.id]] }))
  assert.equal((await publish(client, event)).ok, false)
  assert.ok((await query(client, [{ kinds: [5], authors: [author.pk] }])).ids.includes(deletion.id))
})

// ---------------------------------------------------------------- expiration (NIP-40)

test('an event that has expired is never served', async () => {
  const author = key()
  const sub = subscribe(other, [{ authors: [author.pk] }])
  await sub.settled()
  const dead = author.sign({ kind: 1, tags: [['expiration', `${now() - 5}`]], created_at: now() - 60 })
  await publish(client, dead)
  const marker = await put(client, author.sign({ kind: 1 }))
  assert.deepEqual(await sub.upTo(marker.id), [marker.id])
  assert.deepEqual((await query(client, [{ ids: [dead.id] }])).ids, [])
})

test('an event stops being served, and counted, at the second of its expiration', async () => {
  const author = key()
  const [expires, event] = await beforeExpiry(async expires => {
    const event = await put(client, author.sign({ kind: 1, content: 'brief', tags: [['expiration', `${expires}`]] }))
    assert.deepEqual((await query(client, [{ ids: [event.id] }])).ids, [event.id])
    return event
  })
  await eventually(() => now() > expires, 'the clock')
  for (const filter of [{ ids: [event.id] }, { authors: [author.pk] }, { search: 'brief' }]) {
    assert.ok(!(await query(client, [filter])).ids.includes(event.id), JSON.stringify(filter))
  }
  assert.equal((await count(client, [{ authors: [author.pk] }])).count, 0)
})

// ---------------------------------------------------------------- COUNT (NIP-45) and search (NIP-50)

test('COUNT is exact, ignores no filter and counts an event of two filters once', async () => {
  const author = key()
  const notes = Array.from({ length: 12 }, (_, n) => author.sign({ kind: n % 3 ? 1 : 1111, content: `${n}` }))
  await put(client, ...notes)
  const of = async (...filters) => (await count(client, filters)).count
  assert.equal(await of({ authors: [author.pk] }), 12)
  assert.equal(await of({ authors: [author.pk], kinds: [1111] }), 4)
  assert.equal(await of({ authors: [author.pk] }, { authors: [author.pk], kinds: [1] }, { ids: [notes[0].id] }), 12)
  assert.equal(await of({ authors: [key().pk] }), 0)
})

test('COUNT carries the HyperLogLog that NIP-45 defines for its filters', async () => {
  const target = nobody()
  const reactions = Array.from({ length: 20 }, () => key().sign({ kind: 7, content: '+', tags: [['e', target]] }))
  await put(client, ...reactions)
  const registers = newHll()
  for (const event of reactions) feedEvent(registers, event, computeOffset(target))
  const answer = await count(client, [{ '#e': [target], kinds: [7] }])
  assert.equal(answer.count, 20)
  assert.equal(answer.hll, hllEncode(registers))
})

test('search finds public text by its words and nothing that is encrypted', async () => {
  const author = key()
  const word = `zxq${nobody().slice(0, 12)}`
  const note = await put(client, author.sign({ kind: 1, content: `The ${word} is in bloom.` }))
  await put(client, author.sign({ kind: 4, content: `${word}?iv=AAAA`, tags: [['p', key().pk]] }))
  await put(client, key().sign({ kind: 1059, content: word, tags: [['p', author.pk]] }))
  const asAuthor = await connect(relay.url, author)
  assert.deepEqual((await query(asAuthor, [{ search: word }])).ids, [note.id])
  assert.deepEqual((await query(asAuthor, [{ search: `bloom ${word}`, kinds: [1] }])).ids, [note.id])
  assert.deepEqual((await query(asAuthor, [{ search: word, authors: [key().pk] }])).ids, [])
  await put(client, author.sign({ kind: 5, tags: [['e', note.id]] }))
  assert.deepEqual((await query(asAuthor, [{ search: word }])).ids, [])
})

// ---------------------------------------------------------------- NIP-44

test('a NIP-44 payload comes back unharmed, in the short and in the extended-length form', async () => {
  const [a, b] = [key(), key()]
  for (const length of [1, 65_535, 65_536, 70_000]) {
    const plain = 'ü'.repeat(length / 2) + (length % 2 ? 'x' : '')
    const event = a.sign({ kind: 30_078, tags: [['d', `${length}`]], content: encrypt(plain, getConversationKey(a.sk, b.pk)) })
    await put(client, event)
    const { events: [got] } = await query(other, [{ ids: [event.id] }])
    assert.equal(decrypt(got.content, getConversationKey(b.sk, a.pk)), plain)
  }
})
