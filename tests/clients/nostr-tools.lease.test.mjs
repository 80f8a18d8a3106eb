// Leases (kind 24480) through an unmodified nostr-tools: the answer to a request stands in the OK.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { attest, authenticate, connect, eventually, hangUp, key, nobody, now, publish, put, query, startRelay, subscribe } from './harness.mjs'

const member = key()
let relay
before(async () => { relay = await startRelay({ members: [member.pk] }) })
after(async () => { hangUp(); await relay?.stop() })

/** Long enough for any test to hold its lease, in seconds. */
const TTL = 300

/** An agent with one connection for each of its instances. */
async function team(size = 2, url = relay.url) {
  const agent = key()
  const clients = []
  while (clients.length < size) clients.push(await connect(url, agent))
  return { agent, clients, resource: `prompter:${agent.pk}` }
}

let serial = 0
/** Asks for a lease operation and reads the answer: `{ ok, epoch, expires, holder, message }`. */
async function lease(client, who, resource, op, instance, { epoch, ttl = TTL, more = [], ...change } = {}) {
  const tags = [['resource', resource], ['op', op], ['instance', instance], ...more]
  if (epoch !== undefined) tags.push(['epoch', `${epoch}`])
  if (ttl !== null) tags.push(['ttl', `${ttl}`])
  const { ok, message } = await publish(client, who.sign({ kind: 24_480, tags, content: `${serial++}`, ...change }))
  const granted = /^lease: epoch=(\d+)(?: expires=(\d+))?/.exec(message)
  const held = /^conflict: held by (\S+) epoch=(\d+) expires=(\d+)/.exec(message)
  const [, a, b] = granted ?? []
  if (ok) return { ok, message, epoch: Number(a), expires: Number(b) }
  return { ok, message, holder: held?.[1], epoch: Number(held?.[2]), expires: Number(held?.[3]) }
}

test('an acquired lease is answered lease: with its epoch and its expiry, and conflict: to everyone else', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const before = now()
  const mine = await lease(a, agent, resource, 'acquire', 'one')
  assert.deepEqual([mine.ok, mine.epoch], [true, 1], mine.message)
  assert.ok(mine.expires >= before + TTL && mine.expires <= now() + TTL, mine.message)
  const theirs = await lease(b, agent, resource, 'acquire', 'two')
  assert.deepEqual([theirs.ok, theirs.holder, theirs.epoch, theirs.expires], [false, 'one', 1, mine.expires], theirs.message)
})

test('of many instances that ask at once exactly one gets the lease', async () => {
  const { agent, clients, resource } = await team(8)
  const answers = await Promise.all(clients.map((client, n) => lease(client, agent, resource, 'acquire', `i${n}`)))
  assert.equal(answers.filter(a => a.ok).length, 1)
  for (const { ok, message } of answers) if (!ok) assert.match(message, /^conflict: held by /)
})

test('a renewal keeps the epoch and moves the expiry; a wrong epoch or another instance is a conflict:', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const { epoch } = await lease(a, agent, resource, 'acquire', 'one')
  const before = now()
  const renewed = await lease(a, agent, resource, 'renew', 'one', { epoch, ttl: 2 * TTL })
  assert.deepEqual([renewed.ok, renewed.epoch], [true, epoch], renewed.message)
  assert.ok(renewed.expires >= before + 2 * TTL, renewed.message)
  assert.match((await lease(a, agent, resource, 'renew', 'one', { epoch: epoch + 1 })).message, /^conflict:/)
  assert.match((await lease(b, agent, resource, 'renew', 'two', { epoch })).message, /^conflict:/)
})

test('a released lease can be acquired again, with a higher epoch', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const first = await lease(a, agent, resource, 'acquire', 'one')
  assert.equal((await lease(b, agent, resource, 'release', 'two', { epoch: first.epoch })).ok, false)
  assert.equal((await lease(a, agent, resource, 'release', 'one', { epoch: first.epoch })).ok, true)
  const second = await lease(b, agent, resource, 'acquire', 'two')
  assert.deepEqual([second.ok, second.epoch], [true, first.epoch + 1], second.message)
})

test('a lease that ran out is free, its epoch is not: the old holder can do nothing more', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const old = await lease(a, agent, resource, 'acquire', 'one', { ttl: 1 })
  const next = await eventually(async () => {
    const answer = await lease(b, agent, resource, 'acquire', 'two')
    return answer.ok && answer
  }, 'the expiry of a lease of one second')
  assert.equal(next.epoch, old.epoch + 1)
  assert.match((await lease(a, agent, resource, 'renew', 'one', { epoch: old.epoch })).message, /^conflict:/)
})

test('the clock of a lease is the relay’s, never the client’s', async () => {
  for (const shift of [-100, 100]) {
    const { agent, clients: [a], resource } = await team(1)
    const before = now()
    const answer = await lease(a, agent, resource, 'acquire', 'one', { created_at: before + shift })
    assert.equal(answer.ok, true, answer.message)
    assert.ok(answer.expires >= before + TTL && answer.expires <= now() + TTL, answer.message)
  }
})

test('only the agent asks for its own prompter and turn leases', async () => {
  const { agent, clients: [a] } = await team(1)
  const stranger = key()
  const asStranger = await connect(relay.url, stranger)
  for (const resource of [`prompter:${agent.pk}`, `turn:${agent.pk}:${nobody()}`]) {
    for (const op of ['acquire', 'steal']) {
      const answer = await lease(asStranger, stranger, resource, op, 'thief')
      assert.equal(answer.ok, false, `${op} ${resource}`)
      assert.match(answer.message, /^(restricted|auth-required):/)
    }
    assert.equal((await lease(a, agent, resource, 'acquire', 'one')).ok, true)
  }
})

test('the owner may steal the prompter lease of its agent', async () => {
  const [owner, agent] = [key(), key()]
  const client = await connect(relay.url)
  await authenticate(client, agent, [attest(owner, agent.pk)])
  const resource = `prompter:${agent.pk}`
  const held = await lease(client, agent, resource, 'acquire', 'one')
  const stolen = await lease(await connect(relay.url, owner), owner, resource, 'steal', 'two')
  assert.deepEqual([stolen.ok, stolen.epoch], [true, held.epoch + 1], stolen.message)
  assert.match((await lease(client, agent, resource, 'renew', 'one', { epoch: held.epoch })).message, /^conflict:/)
})

test('an agent steals its own lease with the consent of its owner, and with nobody else’s', async () => {
  const [owner, agent] = [key(), key()]
  const [one, two] = [await connect(relay.url), await connect(relay.url, agent)]
  await authenticate(one, agent, [attest(owner, agent.pk)])
  const resource = `prompter:${agent.pk}`
  const held = await lease(one, agent, resource, 'acquire', 'one')
  const steal = tag => lease(two, agent, resource, 'steal', 'two', { more: tag ? [tag] : [] })
  const wrong = {
    none: null,
    'of another key': attest(key(), agent.pk),
    'for another agent': attest(owner, key().pk),
    'for another kind': attest(owner, agent.pk, 'kind=1'),
    'that has run out': attest(owner, agent.pk, `created_at<${now() - 60}`),
  }
  for (const [what, tag] of Object.entries(wrong)) {
    assert.match((await steal(tag)).message, /^restricted:/, `a consent ${what}`)
  }
  assert.equal((await lease(one, agent, resource, 'renew', 'one', { epoch: held.epoch })).ok, true, 'still held')
  const stolen = await steal(attest(owner, agent.pk, `kind=24480&created_at<${now() + 600}`))
  assert.deepEqual([stolen.ok, stolen.epoch], [true, held.epoch + 1], stolen.message)
  assert.match((await lease(one, agent, resource, 'renew', 'one', { epoch: held.epoch })).message, /^conflict:/)
})

test('a request that lacks its resource, its op or its epoch is invalid:', async () => {
  const { agent, clients: [a], resource } = await team(1)
  const all = [['resource', resource], ['op', 'renew'], ['instance', 'one'], ['epoch', '1'], ['ttl', '30']]
  for (const missing of ['resource', 'op', 'instance', 'epoch']) {
    const tags = all.filter(([name]) => name !== missing)
    assert.match((await publish(a, agent.sign({ kind: 24_480, tags }))).message, /^invalid:/, `no ${missing}`)
  }
  for (const [name, value] of [['op', 'borrow'], ['epoch', '-1'], ['epoch', '01x'], ['ttl', 'soon']]) {
    const tags = all.map(tag => (tag[0] === name ? [name, value] : tag))
    assert.match((await publish(a, agent.sign({ kind: 24_480, tags }))).message, /^invalid:/, `${name}=${value}`)
  }
})

test('a lease request is shown to nobody and stored nowhere', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const sub = subscribe(b, [{ authors: [agent.pk] }])
  await sub.settled()
  await lease(a, agent, resource, 'acquire', 'one')
  const marker = await put(a, agent.sign({ kind: 1 }))
  assert.deepEqual(await sub.upTo(marker.id), [marker.id])
  assert.deepEqual((await query(a, [{ kinds: [24_480] }])).ids, [])
})

test('the state of a lease is published by the relay’s own key as kind 30480', async () => {
  const { agent, clients: [a], resource } = await team(1)
  const watcher = await connect(relay.url, member)
  const filter = { kinds: [30_480], authors: [relay.pubkey], '#d': [resource] }
  const sub = subscribe(watcher, [filter])
  await sub.settled()
  const { epoch } = await lease(a, agent, resource, 'acquire', 'one')
  await eventually(() => sub.seen.length >= 1, 'the state after acquire')
  await lease(a, agent, resource, 'release', 'one', { epoch })
  await eventually(() => sub.seen.length >= 2, 'the state after release')
  const { events } = await query(watcher, [filter])
  assert.equal(events.length, 1)
  assert.equal(events[0].id, sub.seen.at(-1).id)
})

// ---------------------------------------------------------------- writes under a lease

test('an event that carries an older epoch of a lease is refused with conflict:', async () => {
  const { agent, clients: [a, b], resource } = await team()
  const { epoch } = await lease(a, agent, resource, 'acquire', 'one')
  const under = n => agent.sign({ kind: 1, content: `${serial++}`, tags: [['lease', resource, `${n}`]] })
  await put(a, under(epoch))
  await lease(a, agent, resource, 'release', 'one', { epoch })
  const next = await lease(b, agent, resource, 'acquire', 'two')
  const late = under(epoch)
  assert.match((await publish(a, late)).message, /^conflict:/)
  assert.deepEqual((await query(a, [{ ids: [late.id] }])).ids, [])
  await put(b, under(next.epoch))
})

test('a final event completes its turn: a second final, and a new lease on it, are a conflict: for ever', async () => {
  const { agent, clients: [a, b] } = await team()
  const resource = `turn:${agent.pk}:${nobody()}`
  const { epoch } = await lease(a, agent, resource, 'acquire', 'one')
  const reply = content => agent.sign({ kind: 1, content, tags: [['lease', resource, `${epoch}`, 'final']] })
  const stranger = key()
  const forged = stranger.sign({ kind: 1, content: 'forged', tags: [['lease', resource, `${epoch}`, 'final']] })
  assert.equal((await publish(await connect(relay.url, stranger), forged)).ok, false, 'a final of another key')
  const first = await put(a, reply('the answer'))
  const second = reply('another answer')
  assert.match((await publish(b, second)).message, /^conflict:/)
  assert.deepEqual((await query(b, [{ authors: [agent.pk] }])).ids, [first.id])
  assert.match((await lease(b, agent, resource, 'acquire', 'two')).message, /^conflict:/)
})

test('of two final replies at once exactly one is taken', async () => {
  const { agent, clients } = await team(6)
  const resource = `turn:${agent.pk}:${nobody()}`
  const { epoch } = await lease(clients[0], agent, resource, 'acquire', 'one')
  const reply = n => agent.sign({ kind: 1, content: `${n}`, tags: [['lease', resource, `${epoch}`, 'final']] })
  const answers = await Promise.all(clients.map((client, n) => publish(client, reply(n))))
  assert.equal(answers.filter(a => a.ok).length, 1)
  assert.equal((await query(clients[0], [{ authors: [agent.pk] }])).ids.length, 1)
})

test('leases and their epochs survive kill -9', async () => {
  let own = await startRelay()
  try {
    const { agent, clients: [a], resource } = await team(1, own.url)
    const turn = `turn:${agent.pk}:${nobody()}`
    const held = await lease(a, agent, resource, 'acquire', 'one', { ttl: 300 })
    const done = await lease(a, agent, turn, 'acquire', 'one')
    await put(a, agent.sign({ kind: 1, tags: [['lease', turn, `${done.epoch}`, 'final']] }))
    const { pubkey } = own
    own = await own.crashAndRestart()
    assert.equal(own.pubkey, pubkey)
    const again = await connect(own.url, agent)
    const other = await lease(again, agent, resource, 'acquire', 'two')
    assert.deepEqual([other.ok, other.holder, other.epoch, other.expires], [false, 'one', held.epoch, held.expires])
    assert.match((await lease(again, agent, turn, 'acquire', 'two')).message, /^conflict:/)
    assert.equal((await lease(again, agent, resource, 'renew', 'one', { epoch: held.epoch })).ok, true)
  } finally {
    await own.stop()
  }
})
