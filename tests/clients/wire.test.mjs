// Limits and hostile input, by bare frames and by a signer fast enough to reach the limits (nostr-tools/wasm).
//
// Every number in NIP-11 is the number enforced: at the limit a thing works, one step over it does not.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { fetchRelayInformation } from 'nostr-tools/nip11'
import { finalizeEvent, setNostrWasm } from 'nostr-tools/wasm'
import { initNostrWasm } from 'nostr-wasm'
import { eventually, key, nobody, now, startRelay, within, Wire } from './harness.mjs'

let relay, wire, limits
before(async () => {
  setNostrWasm(await initNostrWasm())
  relay = await startRelay()
  limits = (await fetchRelayInformation(relay.url)).limitation
})
after(async () => { await relay?.stop() })

/** Each test has a connection of its own: some are meant to lose it. */
const withWire = run => async () => {
  wire = await Wire.open(relay.url)
  try { await run() } finally { wire.close() }
}

/** The relay is up and this connection still works. */
async function isAlive(on = wire) {
  const answer = await on.ask(['REQ', 'alive', { ids: [nobody()] }])
  on.send(['CLOSE', 'alive'])
  return answer.at(-1)?.[0] === 'EOSE'
}

/** CLOSED for the subscription, or a NOTICE where no subscription id can be named. */
const refusal = id => wire.take(f => f[0] === 'NOTICE' || (f[0] === 'CLOSED' && f[1] === id), `a refusal of ${id}`)

describe('a limit in the information document is real:', () => {
  test('max_subid_length', withWire(async () => {
    const longest = 'x'.repeat(limits.max_subid_length)
    assert.equal(limits.max_subid_length, 64)
    assert.equal((await wire.ask(['REQ', longest, { ids: [nobody()] }])).at(-1)[0], 'EOSE')
    wire.send(['REQ', `${longest}x`, { ids: [nobody()] }])
    assert.ok(await refusal(`${longest}x`))
    wire.send(['REQ', '', { ids: [nobody()] }])
    assert.ok(await refusal(''))
    assert.ok(await isAlive())
  }))

  test('max_filters', withWire(async () => {
    const most = limits.max_filters ?? 20
    const filters = Array.from({ length: most }, () => ({ ids: [nobody()] }))
    assert.equal((await wire.ask(['REQ', 'q', ...filters])).at(-1)[0], 'EOSE')
    wire.send(['REQ', 'over', ...filters, { ids: [nobody()] }])
    const [verb, , reason] = await refusal('over')
    assert.equal(verb, 'CLOSED')
    assert.match(reason, /^(invalid|error|restricted|blocked|rate-limited|unsupported):/)
  }))

  test('max_subscriptions', withWire(async () => {
    const author = key()
    for (let n = 0; n < limits.max_subscriptions; n++) {
      assert.equal((await wire.ask(['REQ', `s${n}`, { authors: [author.pk] }])).at(-1)[0], 'EOSE', `subscription ${n}`)
    }
    wire.send(['REQ', 'over', { authors: [author.pk] }])
    assert.equal((await refusal('over'))[0], 'CLOSED')
    assert.equal((await wire.ask(['REQ', 's0', { authors: [author.pk] }])).at(-1)[0], 'EOSE', 'an open id may be used again')
    const event = author.sign({ kind: 1 })
    await wire.publish(event)
    for (let n = 0; n < limits.max_subscriptions; n++) {
      await wire.take(f => f[0] === 'EVENT' && f[1] === `s${n}` && f[2].id === event.id, `live on subscription ${n}`)
    }
    wire.send(['CLOSE', 's1'])
    assert.equal((await wire.ask(['REQ', 'again', { authors: [author.pk] }])).at(-1)[0], 'EOSE', 'a closed one makes room')
  }))

  test('max_event_tags', withWire(async () => {
    const tags = length => Array.from({ length }, (_, n) => ['t', `${n}`])
    assert.equal((await wire.publish(key().sign({ kind: 1, tags: tags(limits.max_event_tags) }))).ok, true)
    const over = await wire.publish(key().sign({ kind: 1, tags: tags(limits.max_event_tags + 1) }))
    assert.equal(over.ok, false)
    assert.match(over.message, /^invalid:/)
  }))

  test('created_at_upper_limit', withWire(async () => {
    const ahead = seconds => wire.publish(key().sign({ kind: 1, created_at: now() + seconds }))
    assert.equal((await ahead(limits.created_at_upper_limit - 5)).ok, true)
    const over = await ahead(limits.created_at_upper_limit + 60)
    assert.equal(over.ok, false)
    assert.match(over.message, /^invalid:/)
  }))

  test('created_at_lower_limit, where there is one', withWire(async () => {
    const lowest = limits.created_at_lower_limit
    const old = await wire.publish(key().sign({ kind: 1, created_at: lowest ? now() - lowest - 60 : 1 }))
    assert.equal(old.ok, !lowest, old.message)
  }))

  test('max_content_length, and the size of an event', withWire(async () => {
    const length = limits.max_content_length ?? 256 * 1024
    const over = await wire.publish(key().sign({ kind: 1, content: 'x'.repeat(length + 1) }))
    assert.equal(over.ok, false)
    assert.match(over.message, /^invalid:/)
    const near = await wire.publish(key().sign({ kind: 1, content: 'x'.repeat(limits.max_content_length ? length : length - 1024) }))
    assert.equal(near.ok, true, near.message)
  }))

  test('max_message_length', withWire(async () => {
    const padded = (id, length) => {
      const [head, tail] = [`["REQ","${id}",{"ids":["${nobody()}"]}`, ']']
      return head + ' '.repeat(length - head.length - tail.length) + tail
    }
    wire.send(padded('fits', limits.max_message_length))
    assert.equal((await wire.take(f => f[1] === 'fits', 'EOSE'))[0], 'EOSE')
    wire.send(padded('over', limits.max_message_length + 1))
    const answer = await wire.take(f => f[0] === 'NOTICE' || f[1] === 'over', 'a refusal')
    assert.ok(answer === null || answer[0] !== 'EOSE', 'a longer message was acted upon')
    const fresh = await Wire.open(relay.url)
    assert.ok(await isAlive(fresh))
    fresh.close()
  }))

  test('a tag value of 8 KiB is the longest', withWire(async () => {
    const of = length => wire.publish(key().sign({ kind: 1, tags: [['t', 'x'.repeat(length)]] }))
    assert.equal((await of(8192)).ok, true)
    const over = await of(8193)
    assert.equal(over.ok, false)
    assert.match(over.message, /^invalid:/)
  }))

  test('max_limit: a filter gets so many events, the newest, and COUNT counts them all', withWire(async () => {
    const length = limits.max_limit + 20
    assert.ok(length <= 6000, `max_limit ${limits.max_limit} is out of reach for this test`)
    const t = now()
    const sent = []
    let acknowledged = 0
    let authors = []
    const refused = []
    wire.socket.on('message', data => {
      const [verb, , ok, message] = JSON.parse(data)
      if (verb === 'OK' && ok) acknowledged++
      else if (verb === 'OK') refused.push(message)
    })
    // One author for each batch: a limit for a single key is another rule's test.
    while (sent.length < length) {
      const who = key()
      authors = [...authors, who.pk]
      for (let n = 0; n < 250 && sent.length < length; n++) {
        const event = finalizeEvent({ kind: 1, created_at: t - sent.length, tags: [], content: '' }, who.sk)
        sent.push(event.id)
        wire.send(['EVENT', event])
      }
      await eventually(() => acknowledged + refused.length === sent.length, 'every OK', undefined, 20)
      assert.deepEqual(refused, [])
    }
    wire.frames.length = 0
    const asked = await wire.ask(['REQ', 'all', { authors, limit: length }])
    assert.equal(asked.at(-1)[0], 'EOSE')
    assert.deepEqual(asked.slice(0, -1).map(f => f[2].id), sent.slice(0, limits.max_limit))
    assert.deepEqual(await wire.ask(['COUNT', 'n', { authors }]), [['COUNT', 'n', { count: length }]])
  }))
})

// ---------------------------------------------------------------- pipelining

describe('a client that does not wait for answers', () => {
  for (const size of [0, 1000, 10_000]) {
    test(`gets an OK for every one of 400 events of ${size} bytes, and each is stored`, withWire(async () => {
      const author = key()
      const t = now()
      const events = Array.from({ length: 400 }, (_, n) => (
        finalizeEvent({ kind: 1, created_at: t - n, tags: [], content: 'x'.repeat(size) }, author.sk)))
      for (const event of events) wire.send(['EVENT', event])
      const answered = new Map()
      while (answered.size < events.length) {
        const answer = await wire.take(f => f[0] === 'OK', `an OK: ${answered.size} of ${events.length} came`)
        answered.set(answer[1], answer)
      }
      for (const { id } of events) assert.deepEqual(answered.get(id), ['OK', id, true, ''])
      assert.deepEqual(await wire.ask(['COUNT', 'n', { authors: [author.pk] }]), [['COUNT', 'n', { count: events.length }]])
    }))
  }

  test('gets an answer to every REQ and COUNT', withWire(async () => {
    for (let n = 0; n < 150; n++) {
      wire.send(['REQ', `r${n}`, { ids: [nobody()] }])
      wire.send(['COUNT', `c${n}`, { ids: [nobody()] }])
    }
    for (let n = 0; n < 150; n++) {
      assert.equal((await wire.take(f => f[1] === `r${n}`, `EOSE of r${n}`))[0], 'EOSE')
      assert.equal((await wire.take(f => f[1] === `c${n}`, `COUNT of c${n}`))[0], 'COUNT')
    }
  }))
})

// ---------------------------------------------------------------- hostile input

describe('hostile input', () => {
  test('is answered, and the connection is kept', withWire(async () => {
    const frames = [
      '', 'nonsense', '{}', '[]', '[1]', '["REQ"]', '["REQ","x"]', '["REQ","x",5]', '["EVENT"]', '["EVENT",{}]', '["EVENT",[]]',
      '["NOPE","x"]', '["REQ","x",{"kinds":"1"}]', '["REQ","x",{"ids":["zz"]}]', `["REQ","x",{"since":1e400}]`, '["REQ","x",{"limit":-1}]',
    ]
    for (const frame of frames) wire.send(frame)
    for (let n = 0; n < frames.length; n++) {
      assert.ok(await wire.take(f => ['NOTICE', 'CLOSED', 'OK'].includes(f[0]), `an answer to ${frames[n]}`), `cut after ${n}`)
    }
    assert.ok(await isAlive())
  }))

  test('in the form of deep nesting and huge numbers is answered, and the connection is kept', withWire(async () => {
    const deep = '['.repeat(200_000)
    const event = key().sign({ kind: 1 })
    const huge = JSON.stringify(['EVENT', event]).replace(/"created_at":\d+/, `"created_at":${'9'.repeat(400)}`)
    for (const frame of [deep, `["REQ","x",${deep}`, huge, `["REQ","x",{"kinds":[${'9'.repeat(5000)}]}]`]) {
      wire.send(frame)
      assert.ok(await wire.take(f => ['NOTICE', 'CLOSED', 'OK'].includes(f[0]), 'an answer'), frame.slice(0, 30))
    }
    assert.ok(await isAlive())
  }))

  test('in the form of a text frame that is not UTF-8 is answered with a NOTICE, and close code 1007 (RFC 6455, 8.1)', withWire(async () => {
    const closed = within(new Promise(resolve => { wire.socket.once('close', resolve) }), 'the end of the connection')
    // By hand, since no library sends it: a masked text frame (key 0) of four bytes.
    wire.socket._socket.write(Buffer.from([0x81, 0x84, 0, 0, 0, 0, 0x5b, 0xff, 0xfe, 0x5d]))
    assert.ok(await wire.take(f => f[0] === 'NOTICE', 'a NOTICE'), 'cut without a word')
    assert.equal(await closed, 1007)
    const fresh = await Wire.open(relay.url)
    assert.ok(await isAlive(fresh))
    fresh.close()
  }))

  test('that does not stop is cut off', withWire(async () => {
    const cut = within(new Promise(resolve => { wire.socket.once('close', resolve) }), 'the end of a connection that sends only rubbish')
    for (let n = 0; n < 60; n++) wire.send('rubbish')
    await cut
    const fresh = await Wire.open(relay.url)
    assert.ok(await isAlive(fresh))
    fresh.close()
  }))

  test('every EVENT gets an OK with a machine-readable prefix when it is refused', withWire(async () => {
    const good = key().sign({ kind: 1 })
    const bad = [
      { ...good, sig: 'f'.repeat(128) }, { ...good, id: nobody() }, { ...good, kind: 70_000 }, { ...good, created_at: -1 },
      { ...good, tags: [[1]] }, { ...good, tags: 'x' }, { ...good, content: 5 }, { ...good, pubkey: 'x' },
    ]
    for (const event of bad) {
      const { ok, message } = await wire.publish(event)
      assert.equal(ok, false)
      assert.match(message, /^invalid: ./)
    }
  }))

  test('a filter that is refused is CLOSED, never EOSE', withWire(async () => {
    for (const [n, filter] of [{ kinds: 'x' }, { ids: ['short'] }, { authors: [5] }, { '#e': 'x' }, { since: 'x' }, 'x'].entries()) {
      wire.send(['REQ', `r${n}`, filter])
      const answer = await wire.take(f => f[0] === 'NOTICE' || f[1] === `r${n}`, 'CLOSED')
      assert.ok(['CLOSED', 'NOTICE'].includes(answer[0]), `${JSON.stringify(filter)}: ${answer[0]}`)
      if (answer[0] === 'CLOSED') assert.match(answer[2], /^(invalid|unsupported|error): ./)
    }
  }))

  test('a reader that does not read holds up nobody else', async () => {
    const author = key()
    const slow = await Wire.open(relay.url)
    await slow.ask(['REQ', 'all', { authors: [author.pk] }])
    slow.socket.pause()
    const writer = await Wire.open(relay.url)
    const reader = await Wire.open(relay.url)
    await reader.ask(['REQ', 'all', { authors: [author.pk] }])
    const content = 'x'.repeat(100_000)
    for (let n = 0; n < 100; n++) {
      const event = finalizeEvent({ kind: 21_111, created_at: now(), tags: [['n', `${n}`]], content }, author.sk)
      assert.equal((await writer.publish(event)).ok, true, `event ${n}`)
      assert.ok(await reader.take(f => f[0] === 'EVENT' && f[2].id === event.id, `event ${n} to the other reader`))
    }
    for (const w of [slow, writer, reader]) w.close()
  })
})
