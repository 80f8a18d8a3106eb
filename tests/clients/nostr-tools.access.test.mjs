// Who may read and write, through an unmodified nostr-tools: AUTH, protected events, direct messages, channels, closed relays.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import * as nip04 from 'nostr-tools/nip04'
import * as nip17 from 'nostr-tools/nip17'
import {
  attest, authenticate, connect, count, hangUp, key, nobody, now, publish, put, query, reconcile, startRelay, subscribe,
} from './harness.mjs'

const [keeper, insider, outsider] = [key(), key(), key()]
const ROOM = 'room-of-members'
const CLUB = nobody() // a kind 40 id
const HALL = 'open-hall'
let relay, anyone
before(async () => {
  relay = await startRelay({
    admins: [keeper.pk],
    channels: [
      { id: ROOM, access: 'members', members: [insider.pk] },
      { id: CLUB, access: 'invite', members: [insider.pk], admins: [keeper.pk] },
      { id: HALL, access: 'open' },
    ],
  })
  anyone = await connect(relay.url)
})
after(async () => { hangUp(); await relay?.stop() })

/** By which of the paths this connection finds `event`. A refusal counts as "not found"; the tests of refusals are their own. */
async function pathsThatShow(client, event) {
  const p = event.tags.find(t => t[0] === 'p')?.[1]
  const filters = {
    'by kind': { kinds: [event.kind], authors: [event.pubkey] },
    'by ids': { ids: [event.id] },
    'by author, kindless': { authors: [event.pubkey] },
    'by time, kindless': { since: event.created_at, until: event.created_at },
  }
  if (p) filters['by p'] = { '#p': [p] }
  const found = []
  for (const [path, filter] of Object.entries(filters)) {
    if ((await query(client, [filter])).ids.includes(event.id)) found.push(`REQ ${path}`)
    if (path === 'by time, kindless') continue
    if ((await count(client, [filter])).count > 0) found.push(`COUNT ${path}`)
    const { need } = await reconcile(client, filter).catch(() => ({ need: new Set() }))
    if (need.has(event.id)) found.push(`negentropy ${path}`)
  }
  return found
}

const EVERY_PATH = 3 * 4 + 1

/** Publishes by `writer` while `readers` listen without naming a kind, and returns who of them was sent it. */
async function liveReaders(writer, readers, make) {
  const since = now() - 5
  const subs = readers.map(client => subscribe(client, [{ since }]))
  for (const sub of subs) await sub.settled()
  const event = await put(writer, make())
  const marker = await put(writer, key().sign({ kind: 1, content: 'marker' }))
  const told = []
  for (const sub of subs) told.push((await sub.upTo(marker.id)).includes(event.id))
  subs.forEach(sub => sub.stop())
  return told
}

// ---------------------------------------------------------------- AUTH (NIP-42)

describe('AUTH', () => {
  test('the challenge comes at connect, is never the same twice, and a good answer is OK true', async () => {
    const [a, b] = [await connect(relay.url), await connect(relay.url)]
    for (const c of [a, b]) await query(c, [{ ids: [nobody()] }])
    assert.ok(a.challenge)
    assert.notEqual(a.challenge, b.challenge)
    await authenticate(a, key())
  })

  test('a wrong relay, a wrong challenge, a stale time, a wrong kind and a bad signature are invalid:', async () => {
    const who = key()
    const client = await connect(relay.url)
    await query(client, [{ ids: [nobody()] }])
    const answer = change => { client.authPromise = undefined; return client.auth(async t => change(t)) }
    const tag = (t, name, value) => ({ ...t, tags: t.tags.map(x => (x[0] === name ? [name, value] : x)) })
    const wrong = {
      relay: t => who.sign(tag(t, 'relay', 'wss://elsewhere.example/')),
      challenge: t => who.sign(tag(t, 'challenge', 'made-up')),
      'no challenge': t => who.sign({ ...t, tags: t.tags.slice(0, 1) }),
      'no relay': t => who.sign({ ...t, tags: t.tags.slice(1) }),
      stale: t => who.sign({ ...t, created_at: now() - 130 }),
      'from the future': t => who.sign({ ...t, created_at: now() + 600 }),
      kind: t => who.sign({ ...t, kind: 1 }),
      signature: t => ({ ...who.sign(t), sig: key().sign(t).sig }),
    }
    for (const [what, change] of Object.entries(wrong)) {
      await assert.rejects(answer(change), /^Error: invalid:/, what)
    }
    await assert.rejects(put(client, who.sign({ kind: 1, tags: [['-']] })), /auth-required:/)
  })

  test('the relay tag may be written with or without its trailing slash', async () => {
    for (const url of [relay.url, `${relay.url}/`]) {
      const who = key()
      const client = await connect(relay.url)
      await query(client, [{ ids: [nobody()] }])
      await client.auth(async t => who.sign({ ...t, tags: [['relay', url], ['challenge', client.challenge]] }))
    }
  })

  test('several keys are authenticated on one connection, and none is dropped by the next AUTH', async () => {
    const keys = [key(), key(), key()]
    const mails = []
    for (const k of keys) mails.push(await put(anyone, key().sign({ kind: 4, content: 'x?iv=y', tags: [['p', k.pk]] })))
    const client = await connect(relay.url, ...keys)
    assert.deepEqual((await query(client, [{ ids: mails.map(m => m.id) }])).ids.sort(), mails.map(m => m.id).sort())
    for (const k of keys) await put(client, k.sign({ kind: 1, tags: [['-']] }))
  })
})

// ---------------------------------------------------------------- protected events (NIP-70)

test('a protected event is taken from its authenticated author only', async () => {
  const author = key()
  const event = author.sign({ kind: 1, content: 'mine', tags: [['-']] })
  assert.match((await publish(anyone, event)).message, /^auth-required:/)
  assert.match((await publish(await connect(relay.url, outsider), event)).message, /^restricted:/)
  assert.deepEqual((await query(anyone, [{ ids: [event.id] }])).ids, [])
  await put(await connect(relay.url, author), event)
  assert.deepEqual((await query(anyone, [{ ids: [event.id] }])).ids, [event.id])
})

// ---------------------------------------------------------------- direct messages

describe('direct messages', () => {
  test('a NIP-04 message is seen by its two authenticated parties on every path, and by nobody else on any', async () => {
    const [from, to] = [key(), key()]
    const content = nip04.encrypt(from.sk, to.pk, 'psst')
    const event = await put(anyone, from.sign({ kind: 4, content, tags: [['p', to.pk]] }))
    for (const party of [from, to]) {
      assert.equal((await pathsThatShow(await connect(relay.url, party), event)).length, EVERY_PATH)
    }
    assert.deepEqual(await pathsThatShow(anyone, event), [])
    assert.deepEqual(await pathsThatShow(await connect(relay.url, outsider), event), [])
    const { events: [got] } = await query(await connect(relay.url, to), [{ kinds: [4], '#p': [to.pk] }])
    assert.equal(nip04.decrypt(to.sk, got.pubkey, got.content), 'psst')
  })

  test('a NIP-17 gift wrap is seen by its p on every path, and by nobody else, not even its sender', async () => {
    const [from, to] = [key(), key()]
    const event = await put(anyone, nip17.wrapEvent(from.sk, { publicKey: to.pk }, 'sealed'))
    const reader = await connect(relay.url, to)
    assert.equal((await pathsThatShow(reader, event)).length, EVERY_PATH)
    for (const client of [anyone, await connect(relay.url, outsider), await connect(relay.url, from)]) {
      assert.deepEqual(await pathsThatShow(client, event), [])
    }
    const { events: [got] } = await query(reader, [{ kinds: [1059], '#p': [to.pk] }])
    const rumor = nip17.unwrapEvent(got, to.sk)
    assert.deepEqual([rumor.kind, rumor.pubkey, rumor.content], [14, from.pk, 'sealed'])
  })

  test('the key that signed a gift wrap may not read it back', async () => {
    const [once, to] = [key(), key()]
    const event = await put(anyone, once.sign({ kind: 1059, content: 'x', tags: [['p', to.pk]] }))
    assert.deepEqual(await pathsThatShow(await connect(relay.url, once), event), [])
  })

  test('a live direct message goes to its parties only', async () => {
    const [from, to] = [key(), key()]
    const readers = [anyone, await connect(relay.url, outsider), await connect(relay.url, from), await connect(relay.url, to)]
    const dm = () => from.sign({ kind: 4, content: 'x?iv=y', tags: [['p', to.pk]] })
    assert.deepEqual(await liveReaders(readers[2], readers, dm), [false, false, true, true])
    const wrap = () => nip17.wrapEvent(from.sk, { publicKey: to.pk }, 'sealed')
    // A wrap is dated up to two days back, so these listeners ask by p.
    const subs = readers.map(client => subscribe(client, [{ '#p': [to.pk], limit: 0 }]))
    for (const sub of subs) await sub.settled()
    const event = await put(anyone, wrap())
    const marker = await put(anyone, key().sign({ kind: 1, tags: [['p', to.pk]] }))
    for (const [n, sub] of subs.entries()) assert.equal((await sub.upTo(marker.id)).includes(event.id), n === 3)
  })

  test('an AUTH in the middle of a subscription counts for what comes after it', async () => {
    const to = key()
    const client = await connect(relay.url)
    const sub = subscribe(client, [{ '#p': [to.pk] }])
    await sub.settled()
    await authenticate(client, to)
    const event = await put(anyone, key().sign({ kind: 4, content: 'x?iv=y', tags: [['p', to.pk]] }))
    await sub.upTo(event.id)
  })

  test('a filter that names only gated kinds is CLOSED auth-required: to who has not authenticated', async () => {
    for (const kinds of [[4], [1059], [44_200], [4, 1059]]) {
      const { closed } = await query(anyone, [{ kinds }])
      assert.match(closed ?? 'EOSE', /^auth-required:/, `REQ ${kinds}`)
      assert.match((await count(anyone, [{ kinds }])).closed ?? 'COUNT', /^auth-required:/, `COUNT ${kinds}`)
    }
  })

  test('a filter that could match a gated kind is not refused, and shows the rest', async () => {
    const [from, to] = [key(), key()]
    await put(anyone, from.sign({ kind: 4, content: 'x?iv=y', tags: [['p', to.pk]] }))
    const note = await put(anyone, from.sign({ kind: 1 }))
    for (const filter of [{ authors: [from.pk] }, { kinds: [1, 4], authors: [from.pk] }]) {
      assert.deepEqual(await query(anyone, [filter]).then(r => [r.closed, r.ids]), [null, [note.id]])
      assert.equal((await count(anyone, [filter])).count, 1)
    }
  })

  test('a limit is filled with what the reader may see, not used up by what he may not', async () => {
    const from = key()
    const t = now() - 60
    const note = await put(anyone, from.sign({ kind: 1, created_at: t }))
    for (let n = 1; n <= 5; n++) await put(anyone, from.sign({ kind: 4, created_at: t + n, content: `${n}?iv=y`, tags: [['p', key().pk]] }))
    assert.deepEqual((await query(anyone, [{ authors: [from.pk], limit: 1 }])).ids, [note.id])
  })
})

// ---------------------------------------------------------------- channels

describe('channels', () => {
  for (const [what, make] of [
    ['a members-only group', who => who.sign({ kind: 9, content: `${Math.random()}`, tags: [['h', ROOM]] })],
    ['an invite-only kind 40 channel', who => who.sign({ kind: 42, content: `${Math.random()}`, tags: [['e', CLUB, '', 'root']] })],
  ]) {
    test(`${what} is written and read by its members only, on every path`, async () => {
      const member = await connect(relay.url, insider)
      const stranger = await connect(relay.url, outsider)
      assert.match((await publish(anyone, make(outsider))).message, /^(auth-required|restricted):/)
      assert.match((await publish(stranger, make(outsider))).message, /^restricted:/)
      const event = await put(member, make(insider))
      assert.equal((await pathsThatShow(member, event)).length, EVERY_PATH - 3)
      for (const client of [anyone, stranger]) assert.deepEqual(await pathsThatShow(client, event), [])
      assert.deepEqual(await liveReaders(member, [anyone, stranger, member], () => make(insider)), [false, false, true])
    })
  }

  test('messages of a members-only channel are not found by a stranger’s search', async () => {
    const word = `zxq${nobody().slice(0, 12)}`
    await put(await connect(relay.url, insider), insider.sign({ kind: 9, content: word, tags: [['h', ROOM]] }))
    assert.deepEqual((await query(await connect(relay.url, outsider), [{ search: word }])).ids, [])
  })

  test('an open channel is for everyone', async () => {
    const event = await put(anyone, outsider.sign({ kind: 9, content: 'hi', tags: [['h', HALL]] }))
    assert.deepEqual((await query(anyone, [{ '#h': [HALL] }])).ids, [event.id])
  })
})

// ---------------------------------------------------------------- a closed relay (NIP-43, NIP-AA)

describe('a closed relay', () => {
  const member = key()
  let closed
  before(async () => { closed = await startRelay({ closed: true, members: [member.pk] }) })
  after(() => closed?.stop())

  test('serves and takes nothing before AUTH, and says auth-required:', async () => {
    const client = await connect(closed.url)
    assert.match((await query(client, [{ kinds: [1] }])).closed ?? 'EOSE', /^auth-required:/)
    assert.match((await count(client, [{ kinds: [1] }])).closed ?? 'COUNT', /^auth-required:/)
    assert.match((await publish(client, member.sign({ kind: 1 }))).message, /^auth-required:/)
  })

  test('serves and takes nothing from a stranger, and says restricted:', async () => {
    const stranger = key()
    const client = await connect(closed.url)
    await authenticate(client, stranger).catch(error => assert.match(error.message, /^restricted:/))
    assert.match((await query(client, [{ kinds: [1] }])).closed ?? 'EOSE', /^(restricted|auth-required):/)
    assert.match((await publish(client, stranger.sign({ kind: 1 }))).message, /^(restricted|auth-required):/)
  })

  test('admits a member, and the agent of a member without enrolment', async () => {
    const asMember = await connect(closed.url, member)
    const note = await put(asMember, member.sign({ kind: 1 }))
    const agent = key()
    const asAgent = await connect(closed.url)
    await authenticate(asAgent, agent, [attest(member, agent.pk)])
    assert.deepEqual((await query(asAgent, [{ ids: [note.id] }])).ids, [note.id])
    await put(asAgent, agent.sign({ kind: 1, content: 'at work' }))
  })

  test('does not admit the agent of a stranger, nor an agent of an agent', async () => {
    const [stranger, foreign, agent, deep] = [key(), key(), key(), key()]
    await authenticate(await connect(closed.url), agent, [attest(member, agent.pk)])
    for (const [who, tag] of [[foreign, attest(stranger, foreign.pk)], [deep, attest(agent, deep.pk)]]) {
      const client = await connect(closed.url)
      await authenticate(client, who, [tag]).catch(error => assert.match(error.message, /^restricted:/))
      assert.match((await publish(client, who.sign({ kind: 1 }))).message, /^(restricted|auth-required):/)
    }
  })

  test('an attestation whose created_at clause has passed does not admit', async () => {
    const agent = key()
    const client = await connect(closed.url)
    await authenticate(client, agent, [attest(member, agent.pk, `created_at<${now() - 10}`)]).catch(() => {})
    assert.match((await publish(client, agent.sign({ kind: 1 }))).message, /^(restricted|auth-required):/)
  })
})
