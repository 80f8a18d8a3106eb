// The relay as an application built on an unmodified NDK sees it.
//
// NDK keeps only the newest of what it is sent and hides the rest, so where a rule is about what the relay
// sends, the frames that NDK received (its own `netDebug` hook) are looked at as well.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import WebSocket from 'ws'
import { decrypt, encrypt, getConversationKey } from 'nostr-tools/nip44'
import { attest, beforeExpiry, eventually, hex, key, nobody, now, startRelay, within } from './harness.mjs'

globalThis.WebSocket = WebSocket // NDK takes the browser's; Node 20 has none
const {
  default: NDK, giftUnwrap, giftWrap, NDKEvent, NDKPrivateKeySigner, NDKRelayAuthPolicies, NDKUser,
} = await import('@nostr-dev-kit/ndk')

/** For NDK's own deadlines. */
const PATIENCE_MS = 50_000

let relay
const apps = []
before(async () => { relay = await startRelay() })
after(async () => {
  for (const { ndk } of apps) for (const r of ndk.pool.relays.values()) r.disconnect()
  await relay?.stop()
})

/** An application of its own user. Signs in when asked to, unless told another policy, or `null` for none. */
async function app({ who = key(), policy = ndk => NDKRelayAuthPolicies.signIn({ ndk }) } = {}) {
  const received = []
  const netDebug = (message, _, direction) => { if (direction === 'recv') received.push(JSON.parse(message)) }
  const signer = new NDKPrivateKeySigner(hex(who.sk))
  const ndk = new NDK({ explicitRelayUrls: [relay.url], enableOutboxModel: false, autoConnectUserRelays: false, signer, netDebug })
  if (policy) ndk.relayAuthDefaultPolicy = policy(ndk)
  const [link] = ndk.pool.relays.values()
  const ready = new Promise(resolve => link.once(policy ? 'authed' : 'auth', resolve))
  await within(ndk.connect(PATIENCE_MS), 'NDK to connect')
  await within(ready, 'the challenge')
  const it = {
    ndk, who, received, link,
    user: new NDKUser({ pubkey: who.pk }),
    event: template => new NDKEvent(ndk, { created_at: now(), tags: [], content: '', pubkey: who.pk, ...template }),
    /** Publishes; the error of the relay, not of the set of relays, when it was refused. */
    async publish(template) {
      const event = template instanceof NDKEvent ? template : it.event(template)
      await within(event.publish(undefined, PATIENCE_MS).catch(error => {
        throw [...(error.errors?.values() ?? [])][0] ?? error
      }), `OK to kind ${event.kind}`)
      return event
    },
    fetch: async filter => [...await within(ndk.fetchEvents(filter, { groupable: false }), `EOSE for ${JSON.stringify(filter)}`)],
    /** Ids of the EVENT frames received since `from`. */
    frames: (from = 0) => received.slice(from).filter(f => f[0] === 'EVENT').map(f => f[2].id),
  }
  apps.push(it)
  return it
}

/** What the relay sends in answer to `filter`: the ids in its frames. */
async function sent(reader, filter) {
  const from = reader.received.length
  await reader.fetch(filter)
  return reader.frames(from)
}

// ---------------------------------------------------------------- the everyday of a client

test('a published event is fetched by another user, equal in every field', async () => {
  const [a, b] = [await app(), await app()]
  const event = await a.publish({ kind: 1, content: 'hello "hive"\n🐝', tags: [['t', 'bees']] })
  const [got] = await b.fetch({ authors: [a.who.pk] })
  assert.deepEqual(got.rawEvent(), event.rawEvent())
})

test('a subscription gets what is stored, then EOSE, then what comes', async () => {
  const [a, b] = [await app(), await app()]
  const stored = await a.publish({ kind: 1, content: 'before' })
  const seen = []
  let eose
  const atEose = new Promise(resolve => { eose = () => resolve(seen.length) })
  const sub = b.ndk.subscribe({ authors: [a.who.pk] }, { groupable: false, onEvent: e => seen.push(e.id), onEose: eose })
  assert.equal(await within(atEose, 'EOSE'), 1)
  const live = await a.publish({ kind: 1, content: 'after' })
  await eventually(() => seen.length === 2, 'the live event')
  assert.deepEqual(seen, [stored.id, live.id])
  sub.stop()
})

test('many subscriptions of one application are told apart', async () => {
  const [a, b] = [await app(), await app()]
  const topics = Array.from({ length: 30 }, (_, n) => `${nobody().slice(0, 8)}-${n}`)
  const heard = new Map(topics.map(t => [t, []]))
  const subs = topics.map(t => b.ndk.subscribe({ '#t': [t] }, { groupable: false, onEvent: e => heard.get(t).push(e.content) }))
  await within(Promise.all(subs.map(s => new Promise(resolve => s.once('eose', resolve)))), 'EOSE for each')
  for (const t of topics) await a.publish({ kind: 1, content: t, tags: [['t', t]] })
  await eventually(() => topics.every(t => heard.get(t).length === 1), 'each its own event')
  for (const t of topics) assert.deepEqual(heard.get(t), [t])
  subs.forEach(s => s.stop())
})

test('an ephemeral event is delivered live and never stored', async () => {
  const [a, b] = [await app(), await app()]
  const seen = []
  const sub = b.ndk.subscribe({ kinds: [21_111], authors: [a.who.pk] }, { groupable: false, onEvent: e => seen.push(e.id) })
  await within(new Promise(resolve => sub.once('eose', resolve)), 'EOSE')
  const event = await a.publish({ kind: 21_111 })
  await eventually(() => seen.length, 'the ephemeral event')
  assert.deepEqual(seen, [event.id])
  assert.deepEqual(await sent(b, { ids: [event.id] }), [])
  sub.stop()
})

// ---------------------------------------------------------------- replace, delete, expire

test('a replaced profile is sent in its newest version only', async () => {
  const [a, b] = [await app(), await app()]
  await a.publish({ kind: 0, created_at: now() - 10, content: '{"name":"old"}' })
  const newest = await a.publish({ kind: 0, content: '{"name":"new"}' })
  assert.deepEqual(await sent(b, { kinds: [0], authors: [a.who.pk] }), [newest.id])
  const profile = await within(b.ndk.getUser({ pubkey: a.who.pk }).fetchProfile(), 'the profile')
  assert.equal(profile.name, 'new')
})

test('two 301-character d values that differ at the end are two addresses', async () => {
  const [a, b] = [await app(), await app()]
  const stem = 'ä'.repeat(300)
  const events = []
  for (const end of ['a', 'b']) events.push(await a.publish({ kind: 30_023, tags: [['d', stem + end]] }))
  assert.deepEqual((await sent(b, { kinds: [30_023], authors: [a.who.pk] })).sort(), events.map(e => e.id).sort())
  assert.deepEqual(await sent(b, { kinds: [30_023], '#d': [stem + 'b'] }), [events[1].id])
})

test('an event that its author deletes is gone for everyone and can’t come back', async () => {
  const [a, b] = [await app(), await app()]
  const note = await a.publish({ kind: 1, content: 'regret' })
  const article = await a.publish({ kind: 30_023, created_at: now() - 5, tags: [['d', 'x']] })
  for (const event of [note, article]) await within(event.delete('no more'), 'OK to the deletion')
  assert.deepEqual(await sent(b, { authors: [a.who.pk], kinds: [1, 30_023] }), [])
  assert.equal((await sent(b, { authors: [a.who.pk], kinds: [5] })).length, 2)
  for (const event of [note, article]) await assert.rejects(a.publish(event))
  const newer = await a.publish({ kind: 30_023, created_at: now() + 2, tags: [['d', 'x']] })
  assert.deepEqual(await sent(b, { authors: [a.who.pk], kinds: [30_023] }), [newer.id])
})

test('an event stops being sent at the second of its expiration', async () => {
  const [a, b] = [await app(), await app()]
  const [expires, event] = await beforeExpiry(async expires => {
    const event = await a.publish({ kind: 1, tags: [['expiration', `${expires}`]] })
    assert.deepEqual(await sent(b, { ids: [event.id] }), [event.id])
    return event
  })
  await eventually(() => now() > expires, 'the clock')
  assert.deepEqual(await sent(b, { ids: [event.id] }), [])
})

// ---------------------------------------------------------------- count and search

test('COUNT is exact and its HyperLogLog estimates the same number of authors', async () => {
  const [a, b] = [await app(), await app()]
  const note = await a.publish({ kind: 1 })
  for (let n = 0; n < 10; n++) await a.publish(new NDKEvent(a.ndk, key().sign({ kind: 7, content: '+', tags: [['e', note.id]] })))
  const { relayResults } = await b.ndk.count({ kinds: [7], '#e': [note.id] })
  const [result] = relayResults.values()
  assert.equal(result.count, 10)
  // Ten keys fall on 256 registers: two of them meet in each sixth run, ten on fewer than six in one of a million.
  assert.ok(Math.abs(result.hll.estimate() - 10) <= 4, `${result.hll.estimate()}`)
})

test('search finds a note by a word of it', async () => {
  const [a, b] = [await app(), await app()]
  const word = `zxq${nobody().slice(0, 12)}`
  const note = await a.publish({ kind: 1, content: `look: ${word}!` })
  assert.deepEqual(await sent(b, { kinds: [1], search: word }), [note.id])
})

// ---------------------------------------------------------------- who may

test('a protected event is taken from its signed-in author and refused from everyone else', async () => {
  const [author, stranger] = [await app(), await app()]
  const event = author.event({ kind: 1, content: 'mine' })
  event.isProtected = true
  await event.sign()
  await assert.rejects(stranger.publish(new NDKEvent(stranger.ndk, event.rawEvent())), /restricted:/)
  await author.publish(event)
  assert.deepEqual(await sent(stranger, { ids: [event.id] }), [event.id])
})

test('an event that is told auth-required: is accepted when NDK has signed in and sends it again', async () => {
  // This policy lets NDK go on at once, while its own AUTH is still under way.
  const hasty = await app({ policy: () => async () => true })
  const event = await hasty.publish({ kind: 1, tags: [['-']] })
  assert.deepEqual(await sent(hasty, { ids: [event.id] }), [event.id])
})

test('NIP-17 mail is sent to its receiver alone, stored and live, and opens there', async () => {
  const [from, to, stranger] = [await app(), await app(), await app()]
  const nameless = await app({ policy: null })
  const inbox = []
  const filter = { kinds: [1059], '#p': [to.who.pk] }
  const sub = to.ndk.subscribe(filter, { groupable: false, onEvent: e => inbox.push(e) })
  const spy = stranger.ndk.subscribe(filter, { groupable: false })
  await within(Promise.all([sub, spy].map(s => new Promise(resolve => s.once('eose', resolve)))), 'EOSE')
  const wrap = await giftWrap(from.event({ kind: 14, content: 'for you', tags: [['p', to.who.pk]] }), to.user, from.ndk.signer)
  await from.publish(wrap)
  await eventually(() => inbox.length, 'the live mail')
  const rumor = await giftUnwrap(inbox[0], undefined, to.ndk.signer)
  assert.deepEqual([rumor.content, rumor.pubkey, rumor.kind], ['for you', from.who.pk, 14])
  assert.deepEqual(await sent(to, filter), [wrap.id])
  for (const other of [stranger, from]) {
    assert.deepEqual(await sent(other, { ids: [wrap.id] }), [])
    assert.equal((await other.ndk.count({ ids: [wrap.id] })).count, 0)
    assert.ok(!other.frames().includes(wrap.id))
  }
  nameless.ndk.subscribe(filter, { groupable: false })
  await eventually(() => nameless.received.find(f => f[0] === 'CLOSED'), 'CLOSED')
  assert.match(nameless.received.find(f => f[0] === 'CLOSED')[2], /^auth-required:/)
  assert.deepEqual(nameless.frames(), [])
  sub.stop()
  spy.stop()
})

test('a NIP-04 message is sent to its two parties and opens at either', async () => {
  const [from, to, stranger] = [await app(), await app(), await app()]
  const event = from.event({ kind: 4, content: 'old style', tags: [['p', to.who.pk]] })
  await event.encrypt(to.user, from.ndk.signer, 'nip04')
  await from.publish(event)
  for (const party of [from, to]) assert.deepEqual(await sent(party, { kinds: [4], '#p': [to.who.pk] }), [event.id])
  assert.deepEqual(await sent(stranger, { '#p': [to.who.pk] }), [])
  assert.deepEqual(await sent(stranger, { kinds: [4], '#p': [to.who.pk] }), [])
  const [got] = await to.fetch({ kinds: [4], '#p': [to.who.pk] })
  await got.decrypt(from.user, to.ndk.signer, 'nip04')
  assert.equal(got.content, 'old style')
})

test('an agent’s turn metric is sent to its owner alone', async () => {
  const [owner, agent, stranger] = [await app(), await app(), await app()]
  const template = { kind: 44_200, tags: [['p', owner.who.pk], ['agent', agent.who.pk]] }
  template.content = encrypt('{"harness":"t","timestamp":"2026-01-01T00:00:00Z"}', getConversationKey(agent.who.sk, owner.who.pk))
  await assert.rejects(agent.publish(template), /restricted:/)
  await agent.publish({ kind: 0, content: '{}', tags: [attest(owner.who, agent.who.pk)] })
  const event = await agent.publish(template)
  assert.deepEqual(await sent(owner, { kinds: [44_200] }), [event.id])
  for (const other of [agent, stranger]) {
    for (const filter of [{ kinds: [44_200] }, { ids: [event.id] }, { '#p': [owner.who.pk] }]) {
      assert.deepEqual(await sent(other, filter), [])
      assert.equal((await other.ndk.count(filter)).count, 0)
    }
  }
})

test('what NDK encrypts by NIP-44 nostr-tools opens, and the reverse, after a journey through the relay', async () => {
  const [a, b] = [await app(), await app()]
  const ours = a.event({ kind: 30_078, content: 'from NDK ü', tags: [['d', 'x'], ['p', b.who.pk]] })
  await ours.encrypt(b.user, a.ndk.signer, 'nip44')
  await a.publish(ours)
  const [got] = await b.fetch({ ids: [ours.id] })
  assert.equal(decrypt(got.content, getConversationKey(b.who.sk, a.who.pk)), 'from NDK ü')
  const theirs = await b.publish({ kind: 30_078, content: encrypt('from nostr-tools', getConversationKey(b.who.sk, a.who.pk)), tags: [['d', 'y']] })
  const [back] = await a.fetch({ ids: [theirs.id] })
  await back.decrypt(b.user, a.ndk.signer, 'nip44')
  assert.equal(back.content, 'from nostr-tools')
})

test('the information document is what NDK expects of one', async () => {
  const { link } = await app()
  const info = await within(link.fetchInfo(true), 'NIP-11')
  assert.equal(info.name, 't')
  assert.ok(info.limitation.max_message_length > 0)
  assert.ok(info.supported_nips.includes(42))
})
