// What agents publish, through an unmodified nostr-tools: ownership (NIP-OA), turn metrics (44200), observer frames (24200).

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { decrypt, encrypt, getConversationKey } from 'nostr-tools/nip44'
import {
  attest, authenticate, connect, count, hangUp, hex, key, nobody, now, publish, put, query, reconcile, sha256, startRelay,
  subscribe, Wire,
} from './harness.mjs'

let relay, anyone
before(async () => {
  relay = await startRelay()
  anyone = await connect(relay.url)
})
after(async () => { hangUp(); await relay?.stop() })

const turn = { harness: 'test', timestamp: new Date().toISOString(), turn: { inputTokens: 1, outputTokens: 2, totalTokens: null, costUsd: null } }
const seal = (from, to, body = turn) => encrypt(JSON.stringify(body), getConversationKey(from.sk, to.pk))

/** A kind 44200 as NIP-AM says; `change` spoils it. */
const metric = (agent, owner, change = {}) => agent.sign({
  kind: 44_200, content: seal(agent, owner), tags: [['p', owner.pk], ['agent', agent.pk]], ...change,
})

/** An agent on its own connection, attested by a fresh owner in its AUTH. */
async function attestedAgent(conditions = '') {
  const [owner, agent] = [key(), key()]
  const client = await connect(relay.url)
  await authenticate(client, agent, [attest(owner, agent.pk, conditions)])
  return { owner, agent, client }
}

// ---------------------------------------------------------------- ownership (NIP-OA)

test('our attestations hash to the published NIP-OA vector', () => {
  const agent = 'c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5'
  const digest = hex(sha256(`nostr:agent-auth:${agent}:kind=1&created_at<1713957000`))
  assert.equal(digest, '08cdecd55af4c28d3801fd69615dcf5cc04fab3bc134b38a840bf157197069a6')
})

describe('ownership', () => {
  test('is registered by an AUTH that carries a valid attestation', async () => {
    const { owner, agent, client } = await attestedAgent()
    await put(client, metric(agent, owner))
  })

  test('is registered also for an agent that is itself a member of a closed relay', async () => {
    const [owner, agent] = [key(), key()]
    const closed = await startRelay({ closed: true, members: [owner.pk, agent.pk] })
    try {
      const client = await connect(closed.url)
      await authenticate(client, agent, [attest(owner, agent.pk)])
      await put(client, metric(agent, owner))
    } finally {
      await closed.stop()
    }
  })

  test('is registered by a kind 0 that carries a valid unconditional attestation', async () => {
    const [owner, agent] = [key(), key()]
    const client = await connect(relay.url, agent)
    assert.match((await publish(client, metric(agent, owner))).message, /^restricted:/)
    await put(client, agent.sign({ kind: 0, content: '{"name":"bee"}', tags: [attest(owner, agent.pk)] }))
    await put(client, metric(agent, owner))
  })

  test('is not registered by a kind 0 with a conditional attestation', async () => {
    const [owner, agent] = [key(), key()]
    const client = await connect(relay.url, agent)
    await publish(client, agent.sign({ kind: 0, content: '{}', tags: [attest(owner, agent.pk, 'kind=0')] }))
    assert.match((await publish(client, metric(agent, owner))).message, /^restricted:/)
  })

  test('is not registered by a spoiled attestation, in AUTH or in kind 0', async () => {
    const spoil = {
      'for another agent': (o, a) => [attest(o, key().pk)],
      'two tags': (o, a) => [attest(o, a.pk), attest(o, a.pk)],
      'three elements': (o, a) => [attest(o, a.pk).filter((_, n) => n !== 2)],
      'five elements': (o, a) => [[...attest(o, a.pk), '']],
      'upper-case owner': (o, a) => [attest(o, a.pk).map((v, n) => (n === 1 ? v.toUpperCase() : v))],
      'short signature': (o, a) => [attest(o, a.pk).map((v, n) => (n === 3 ? v.slice(1) : v))],
      'conditions not those signed': (o, a) => [attest(o, a.pk, 'kind=44200').map((v, n) => (n === 2 ? '' : v))],
      'an empty clause': (o, a) => [attest(o, a.pk, 'kind=44200&')],
      'a number that is not canonical': (o, a) => [attest(o, a.pk, 'kind=044200')],
      'an unknown clause': (o, a) => [attest(o, a.pk, 'until=5')],
    }
    for (const [what, make] of Object.entries(spoil)) {
      const [owner, agent] = [key(), key()]
      const tags = make(owner, agent)
      const client = await connect(relay.url)
      await authenticate(client, agent, tags).catch(error => assert.match(error.message, /^(invalid|restricted):/, what))
      await publish(client, agent.sign({ kind: 0, content: '{}', tags }))
      const { ok, message } = await publish(client, metric(agent, owner))
      assert.equal(ok, false, what)
      assert.match(message, /^(restricted|auth-required):/, what)
    }
  })

  test('is never of an agent over itself', async () => {
    const agent = key()
    const client = await connect(relay.url)
    await authenticate(client, agent, [attest(agent, agent.pk)]).catch(() => {})
    assert.match((await publish(client, metric(agent, agent))).message, /^(restricted|auth-required):/)
  })

  test('under a kind= clause lets the session publish that kind and no other', async () => {
    const { owner, agent, client } = await attestedAgent('kind=44200')
    await put(client, metric(agent, owner))
    assert.match((await publish(client, agent.sign({ kind: 1 }))).message, /^restricted:/)
  })

  test('under a created_at clause that does not hold at AUTH is not registered', async () => {
    for (const conditions of [`created_at<${now() - 60}`, `created_at>${now() + 60}`]) {
      const [owner, agent] = [key(), key()]
      const client = await connect(relay.url)
      await authenticate(client, agent, [attest(owner, agent.pk, conditions)]).catch(() => {})
      assert.match((await publish(client, metric(agent, owner))).message, /^(restricted|auth-required):/)
    }
  })
})

// ---------------------------------------------------------------- agent turn metrics (NIP-AM)

describe('kind 44200', () => {
  test('is taken from the authenticated agent only', async () => {
    const { owner, agent, client } = await attestedAgent()
    const event = metric(agent, owner)
    assert.match((await publish(anyone, event)).message, /^auth-required:/)
    assert.match((await publish(await connect(relay.url, key()), event)).message, /^(restricted|auth-required):/)
    await put(client, event)
  })

  test('needs one p that is the owner, one agent that is itself, no h, and a NIP-44 v2 payload', async () => {
    const { owner, agent, client } = await attestedAgent()
    const [p, self] = [['p', owner.pk], ['agent', agent.pk]]
    const other = key()
    const payload = Buffer.from(seal(agent, owner), 'base64')
    const spoiled = {
      'no p': { tags: [self] },
      'two p': { tags: [p, ['p', other.pk], self] },
      'p twice the same': { tags: [p, p, self] },
      'p of another': { tags: [['p', other.pk], self], content: seal(agent, other) },
      'no agent': { tags: [p] },
      'two agents': { tags: [p, self, ['agent', other.pk]] },
      'agent of another': { tags: [p, ['agent', other.pk]] },
      'an h tag': { tags: [p, self, ['h', 'hall']] },
      'plain text': { content: JSON.stringify(turn) },
      'no content': { content: '' },
      'a NIP-04 payload': { content: 'AAAAAAAAAAAAAAAAAAAAAA==?iv=AAAAAAAAAAAAAAAAAAAAAA==' },
      'version 1': { content: Buffer.concat([Buffer.from([1]), payload.subarray(1)]).toString('base64') },
      'too short': { content: payload.subarray(0, 90).toString('base64') },
    }
    const answers = {}
    for (const [what, change] of Object.entries(spoiled)) answers[what] = (await publish(client, metric(agent, owner, change))).message.split(' ')[0]
    assert.deepEqual(answers, Object.fromEntries(Object.keys(spoiled).map(what => [what, 'restricted:'])))
    await put(client, metric(agent, owner))
  })

  /** The answers to every way of asking about `event`, by the names of the ways. */
  async function answers(client, event) {
    const filters = {
      kinds: { kinds: [44_200] },
      'kinds and p': { kinds: [44_200], '#p': [event.tags[0][1]] },
      'kinds and authors': { kinds: [44_200], authors: [event.pubkey] },
      kindless: { since: event.created_at - 1, until: event.created_at + 1 },
      ids: { ids: [event.id] },
      authors: { authors: [event.pubkey] },
      p: { '#p': [event.tags[0][1]] },
      search: { search: event.content.slice(0, 20) },
    }
    const out = {}
    for (const [name, filter] of Object.entries(filters)) {
      out[`REQ ${name}`] = (await query(client, [filter])).ids.includes(event.id)
      const { events } = await query(client, [filter])
      out[`COUNT ${name}`] = ((await count(client, [filter])).count ?? 0) > events.filter(e => e.id !== event.id).length
      const need = await reconcile(client, filter).then(r => r.need, () => new Set())
      out[`negentropy ${name}`] = need.has(event.id)
    }
    return Object.keys(out).filter(name => out[name])
  }

  test('is read by its authenticated owner, who can decrypt it', async () => {
    const { owner, agent, client } = await attestedAgent()
    const event = await put(client, metric(agent, owner))
    const asOwner = await connect(relay.url, owner)
    const shown = await answers(asOwner, event)
    for (const way of ['kinds', 'kinds and p', 'kinds and authors', 'kindless', 'ids', 'authors', 'p']) {
      for (const verb of ['REQ', 'COUNT', 'negentropy']) assert.ok(shown.includes(`${verb} ${way}`), `${verb} by ${way}`)
    }
    assert.ok(!shown.some(name => name.endsWith('search')))
    const { events: [got] } = await query(asOwner, [{ kinds: [44_200], '#p': [owner.pk] }])
    assert.deepEqual(JSON.parse(decrypt(got.content, getConversationKey(owner.sk, agent.pk))), turn)
  })

  test('is shown on no path to anybody else, not even to the agent that wrote it', async () => {
    const { owner, agent, client } = await attestedAgent()
    const event = await put(client, metric(agent, owner))
    assert.deepEqual(await answers(anyone, event), [], 'before AUTH')
    assert.deepEqual(await answers(await connect(relay.url, key()), event), [], 'a stranger')
    assert.deepEqual(await answers(client, event), [], 'the agent')
  })

  test('goes live to its owner only', async () => {
    const { owner, agent, client } = await attestedAgent()
    const readers = [anyone, await connect(relay.url, key()), client, await connect(relay.url, owner)]
    const subs = readers.map(reader => subscribe(reader, [{ authors: [agent.pk] }, { '#p': [owner.pk] }, { since: now() - 1 }]))
    for (const sub of subs) await sub.settled()
    const event = await put(client, metric(agent, owner))
    const marker = await put(client, agent.sign({ kind: 1 }))
    for (const [n, sub] of subs.entries()) assert.equal((await sub.upTo(marker.id)).includes(event.id), n === 3, `reader ${n}`)
    subs.forEach(sub => sub.stop())
  })

  test('absent and not yours get the same answer, frame by frame', async () => {
    const { owner, agent, client } = await attestedAgent()
    const event = await put(client, metric(agent, owner))
    const [noId, noAgent, noOwner] = [nobody(), nobody(), nobody()]
    const pairs = [
      [{ ids: [event.id] }, { ids: [noId] }],
      [{ ids: [event.id], kinds: [44_200] }, { ids: [noId], kinds: [44_200] }],
      [{ kinds: [44_200], '#p': [owner.pk] }, { kinds: [44_200], '#p': [noOwner] }],
      [{ kinds: [44_200], authors: [agent.pk] }, { kinds: [44_200], authors: [noAgent] }],
      [{ authors: [agent.pk] }, { authors: [noAgent] }],
    ]
    const stranger = key()
    for (const who of [null, stranger]) {
      const wire = await Wire.open(relay.url)
      const [, challenge] = await wire.take(f => f[0] === 'AUTH', 'the challenge')
      if (who) {
        const auth = who.sign({ kind: 22_242, tags: [['relay', relay.url], ['challenge', challenge]] })
        const [answer] = await wire.ask(['AUTH', auth], auth.id)
        assert.equal(answer[2], true)
      }
      for (const [theirs, absent] of pairs) {
        for (const verb of ['REQ', 'COUNT', 'NEG-OPEN']) {
          const ask = async filter => {
            const answer = await wire.ask(verb === 'NEG-OPEN' ? [verb, 'q', filter, '6100000200'] : [verb, 'q', filter])
            wire.send([verb === 'NEG-OPEN' ? 'NEG-CLOSE' : 'CLOSE', 'q'])
            return JSON.stringify(answer)
          }
          const [a, b] = [await ask(theirs), await ask(absent)]
          assert.equal(a, b, `${verb} ${JSON.stringify(theirs)}`)
        }
      }
      wire.close()
    }
  })

  test('cannot be made visible, or be deleted, by a deletion of a stranger', async () => {
    const { owner, agent, client } = await attestedAgent()
    const event = await put(client, metric(agent, owner))
    const stranger = key()
    const [known, unknown] = [event.id, nobody()]
    const outcome = async id => publish(anyone, stranger.sign({ kind: 5, tags: [['e', id]], content: `${Math.random()}` }))
    assert.deepEqual(await outcome(known), await outcome(unknown))
    assert.deepEqual((await query(await connect(relay.url, owner), [{ ids: [event.id] }])).ids, [event.id])
  })

  test('is limited to 60 a minute for each agent', async () => {
    const { owner, agent, client } = await attestedAgent()
    const [content, t] = [seal(agent, owner), now()]
    const burst = Array.from({ length: 100 }, (_, n) => metric(agent, owner, { content, created_at: t - n }))
    const started = Date.now()
    const answers = await Promise.all(burst.map(event => publish(client, event)))
    const seconds = (Date.now() - started) / 1000
    const taken = answers.filter(a => a.ok).length
    assert.ok(taken >= 1 && taken <= 61 + seconds, `${taken} taken in ${seconds} s`)
    for (const { ok, message } of answers) if (!ok) assert.match(message, /^rate-limited:/)
  })
})

// ---------------------------------------------------------------- agent observer frames (NIP-AO)

describe('kind 24200', () => {
  const frame = (from, to, agent, change = {}) => from.sign({
    kind: 24_200, content: seal(from, to), tags: [['p', to.pk], ['agent', agent.pk], ['frame', from === agent ? 'telemetry' : 'control']], ...change,
  })

  test('goes live from agent to owner and from owner to agent, to nobody else, and is never stored', async () => {
    const { owner, agent, client } = await attestedAgent()
    const asOwner = await connect(relay.url, owner)
    const readers = [anyone, await connect(relay.url, key()), asOwner, client]
    const subs = readers.map(reader => subscribe(reader, [{ authors: [agent.pk, owner.pk], limit: 0 }]))
    for (const sub of subs) await sub.settled()
    const telemetry = await put(client, frame(agent, owner, agent))
    const control = await put(asOwner, frame(owner, agent, agent))
    const marker = await put(client, agent.sign({ kind: 1 }))
    const expected = [[false, false], [false, false], [true, false], [false, true]]
    for (const [n, sub] of subs.entries()) {
      const ids = await sub.upTo(marker.id)
      assert.deepEqual([ids.includes(telemetry.id), ids.includes(control.id)], expected[n], `reader ${n}`)
    }
    for (const reader of readers) assert.deepEqual((await query(reader, [{ ids: [telemetry.id, control.id] }])).ids, [])
    assert.equal((await count(anyone, [{ ids: [telemetry.id, control.id] }])).count, 0)
  })

  test('is refused without ownership, from a third key, and when it is not fresh', async () => {
    const { owner, agent, client } = await attestedAgent()
    const [stranger, ownerless] = [key(), key()]
    const asStranger = await connect(relay.url, stranger)
    assert.equal((await publish(asStranger, frame(stranger, agent, agent))).ok, false, 'control by a third key')
    assert.equal((await publish(await connect(relay.url, ownerless), frame(ownerless, owner, ownerless))).ok, false, 'no ownership')
    assert.equal((await publish(client, frame(agent, stranger, agent))).ok, false, 'telemetry to a third key')
    for (const created_at of [now() - 310, now() + 600]) {
      assert.equal((await publish(client, frame(agent, owner, agent, { created_at }))).ok, false, 'not fresh')
    }
    assert.equal((await publish(client, frame(agent, owner, agent))).ok, true)
  })

  test('with an unknown frame value gets OK and goes to nobody', async () => {
    const { owner, agent, client } = await attestedAgent()
    const sub = subscribe(await connect(relay.url, owner), [{ authors: [agent.pk] }])
    await sub.settled()
    const tags = [['p', owner.pk], ['agent', agent.pk], ['frame', 'from-a-later-version']]
    await put(client, frame(agent, owner, agent, { tags }))
    const marker = await put(client, agent.sign({ kind: 1 }))
    assert.deepEqual(await sub.upTo(marker.id), [marker.id])
  })
})
