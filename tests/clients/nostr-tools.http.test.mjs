// HTTP on the relay's port: NIP-11, NIP-86 over NIP-98, Blossom, NIP-05, by nostr-tools and plain fetch.

import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { fetchRelayInformation } from 'nostr-tools/nip11'
import { encrypt, getConversationKey } from 'nostr-tools/nip44'
import * as nip98 from 'nostr-tools/nip98'
import { BlossomClient } from 'nostr-tools/nipb7'
import { PlainKeySigner } from 'nostr-tools/signer'
import { connect, hangUp, hex, key, nobody, now, publish, put, query, sha256, startRelay, subscribe } from './harness.mjs'

const [admin, member] = [key(), key()]
let relay, client
before(async () => {
  relay = await startRelay({ admins: [admin.pk], members: [member.pk] })
  client = await connect(relay.url)
})
after(async () => { hangUp(); await relay?.stop() })

// ---------------------------------------------------------------- NIP-11 and the small pages

describe('the information document', () => {
  test('is full, names the relay and is served with CORS headers', async () => {
    const info = await fetchRelayInformation(relay.url)
    assert.equal(info.name, 't')
    assert.equal(info.self, relay.pubkey)
    for (const nip of [1, 9, 11, 40, 42, 45, 50, 62, 70, 77, 86]) assert.ok(info.supported_nips.includes(nip), `NIP-${nip}`)
    const numbers = ['max_message_length', 'max_subscriptions', 'max_limit', 'max_subid_length', 'max_event_tags', 'created_at_upper_limit']
    for (const name of numbers) assert.ok(info.limitation[name] > 0, name)
    assert.deepEqual([info.limitation.auth_required, info.limitation.payment_required], [false, false])
    const answer = await fetch(relay.http, { headers: { accept: 'application/nostr+json', origin: 'https://client.example' } })
    assert.match(answer.headers.get('content-type'), /^application\/nostr\+json/)
    for (const name of ['origin', 'headers', 'methods']) assert.ok(answer.headers.get(`access-control-allow-${name}`), name)
  })

  test('names its software by a URL, and its version', async () => {
    const info = await fetchRelayInformation(relay.url)
    assert.match(info.software, /^https?:\/\//)
    assert.ok(info.version)
  })

  test('of a closed relay says that it restricts', async () => {
    const closed = await startRelay({ closed: true, members: [member.pk] })
    try {
      const { limitation } = await fetchRelayInformation(closed.url)
      assert.deepEqual([limitation.auth_required, limitation.restricted_writes], [true, true])
    } finally {
      await closed.stop()
    }
  })

  test('health, readiness and metrics answer on the same port', async () => {
    for (const path of ['/health', '/ready', '/metrics']) assert.equal((await fetch(relay.http + path)).status, 200, path)
    assert.match(await (await fetch(`${relay.http}/metrics`)).text(), /^# (HELP|TYPE) /m)
  })
})

test('NIP-05 answers with a names object for anyone’s script, without redirect, and with nothing for an unknown name', async () => {
  const answer = await fetch(`${relay.http}/.well-known/nostr.json?name=nobody-here`, { redirect: 'manual' })
  assert.equal(answer.status, 200)
  assert.equal(answer.headers.get('access-control-allow-origin'), '*')
  assert.match(answer.headers.get('content-type'), /^application\/json/)
  assert.deepEqual((await answer.json()).names, {})
})

// ---------------------------------------------------------------- management (NIP-86 over NIP-98)

describe('management', () => {
  const url = () => `${relay.http}/`
  const send = (token, body) => fetch(url(), {
    method: 'POST', body, headers: { 'content-type': 'application/nostr+json+rpc', ...(token && { authorization: token }) },
  })
  let serial = 0
  /** By nostr-tools. A tag more, since two equal requests of one second would otherwise be one event: a token used twice. */
  const tokenFor = (who, payload) => {
    const sign = t => who.sign({ ...t, tags: [...t.tags, ['nonce', `${serial++}`]] })
    return nip98.getToken(url(), 'POST', sign, true, payload)
  }

  async function manage(method, ...params) {
    const payload = { method, params }
    const answer = await send(await tokenFor(admin, payload), JSON.stringify(payload))
    assert.equal(answer.status, 200, method)
    const { result, error } = await answer.json()
    assert.equal(error ?? null, null, method)
    return result
  }

  test('is for admin keys with a fitting NIP-98 token only', async () => {
    const payload = { method: 'supportedmethods', params: [] }
    const body = JSON.stringify(payload)
    const signed = change => {
      const base = { kind: 27_235, tags: [['u', url()], ['method', 'POST'], ['payload', hex(sha256(body))]] }
      return `Nostr ${Buffer.from(JSON.stringify(admin.sign({ ...base, ...change }))).toString('base64')}`
    }
    const tags = (u, method, payloadHash) => ({ tags: [['u', u], ['method', method], ...(payloadHash ? [['payload', payloadHash]] : [])] })
    const hash = hex(sha256(body))
    const wrong = {
      none: undefined,
      'not base64': 'Nostr %%%',
      'another scheme': signed({}).replace('Nostr', 'Bearer'),
      'another url': signed(tags('https://elsewhere.example/', 'POST', hash)),
      'another path': signed(tags(`${url()}upload`, 'POST', hash)),
      'another method': signed(tags(url(), 'GET', hash)),
      'another payload': signed(tags(url(), 'POST', hex(sha256('other')))),
      'no payload hash': signed(tags(url(), 'POST')),
      'another kind': signed({ kind: 22_242 }),
      'too old': signed({ created_at: now() - 70 }),
      'too new': signed({ created_at: now() + 600 }),
      'a forged signature': `Nostr ${Buffer.from(JSON.stringify({ ...admin.sign({ kind: 27_235, tags: tags(url(), 'POST', hash).tags }), sig: member.sign({ kind: 1 }).sig })).toString('base64')}`,
    }
    for (const [what, token] of Object.entries(wrong)) assert.equal((await send(token, body)).status, 401, what)
    const asMember = await send(await tokenFor(member, payload), body)
    const refused = [401, 403].includes(asMember.status) || await asMember.json().then(a => Boolean(a.error) && !a.result)
    assert.ok(refused, 'a member that is no admin')
    assert.equal((await send(signed({ created_at: now() - 5 }), body)).status, 200, 'and the right one passes')
  })

  test('takes a token once', async () => {
    const payload = { method: 'supportedmethods', params: [] }
    const token = await tokenFor(admin, payload)
    assert.equal((await send(token, JSON.stringify(payload))).status, 200)
    assert.equal((await send(token, JSON.stringify(payload))).status, 401)
  })

  test('lists its methods, and answers an unknown one with an error', async () => {
    const methods = await manage('supportedmethods')
    for (const name of [
      'banpubkey', 'listbannedpubkeys', 'allowpubkey', 'listallowedpubkeys', 'banevent', 'allowevent', 'listbannedevents',
      'allowkind', 'disallowkind', 'listallowedkinds', 'blockip', 'unblockip', 'listblockedips',
      'changerelayname', 'changerelaydescription', 'changerelayicon',
    ]) assert.ok(methods.includes(name), name)
    const payload = { method: 'makecoffee', params: [] }
    const answer = await send(await tokenFor(admin, payload), JSON.stringify(payload))
    assert.ok((await answer.json()).error)
  })

  test('a banned pubkey is blocked: at once, on open connections too, until it is allowed again', async () => {
    const who = key()
    const asWho = await connect(relay.url, who)
    await put(asWho, who.sign({ kind: 1, content: 'before' }))
    assert.equal(await manage('banpubkey', who.pk, 'noise'), true)
    assert.match((await publish(asWho, who.sign({ kind: 1, content: 'during' }))).message, /^blocked:/)
    assert.deepEqual((await manage('listbannedpubkeys')).find(x => x.pubkey === who.pk), { pubkey: who.pk, reason: 'noise' })
    assert.equal(await manage('allowpubkey', who.pk), true)
    assert.ok(!(await manage('listbannedpubkeys')).some(x => x.pubkey === who.pk))
    assert.ok((await manage('listallowedpubkeys')).some(x => x.pubkey === who.pk))
    await put(await connect(relay.url), who.sign({ kind: 1, content: 'after' }))
  })

  test('a banned event is gone and can’t come back, until it is allowed', async () => {
    const event = await put(client, key().sign({ kind: 1 }))
    assert.equal(await manage('banevent', event.id, 'spam'), true)
    assert.deepEqual((await query(client, [{ ids: [event.id] }])).ids, [])
    assert.match((await publish(client, event)).message, /^blocked:/)
    assert.ok((await manage('listbannedevents')).some(x => x.id === event.id && x.reason === 'spam'))
    assert.equal(await manage('allowevent', event.id), true)
    await publish(client, event)
    assert.deepEqual((await query(client, [{ ids: [event.id] }])).ids, [event.id])
  })

  test('a blocked address is listed and can be unblocked', async () => {
    assert.equal(await manage('blockip', '203.0.113.7', 'scan'), true)
    assert.deepEqual((await manage('listblockedips')).find(x => x.ip === '203.0.113.7'), { ip: '203.0.113.7', reason: 'scan' })
    assert.equal(await manage('unblockip', '203.0.113.7'), true)
    assert.deepEqual((await manage('listblockedips')).filter(x => x.ip === '203.0.113.7'), [])
  })

  test('a new name, description and icon show in the information document', async () => {
    assert.equal(await manage('changerelayname', 'hive'), true)
    assert.equal(await manage('changerelaydescription', 'woven'), true)
    assert.equal(await manage('changerelayicon', 'https://hive.example/i.png'), true)
    const { name, description, icon } = await fetchRelayInformation(relay.url)
    assert.deepEqual([name, description, icon], ['hive', 'woven', 'https://hive.example/i.png'])
  })

  test('an owner given to an agent counts at once, and a revoked one no more, on open connections too', async () => {
    const [owner, agent] = [key(), key()]
    const asAgent = await connect(relay.url, agent)
    const metric = () => agent.sign({
      kind: 44_200, tags: [['p', owner.pk], ['agent', agent.pk]], content: encrypt('{}', getConversationKey(agent.sk, owner.pk)),
    })
    assert.match((await publish(asAgent, metric())).message, /^restricted:/)
    assert.equal(await manage('assignagent', agent.pk, owner.pk), true)
    await put(asAgent, metric())
    assert.equal(await manage('revokeagent', agent.pk), true)
    assert.match((await publish(asAgent, metric())).message, /^restricted:/)
  })

  test('a channel member added by a call reads and writes at once, and a removed one no more', async () => {
    const [room, guest] = [nobody(), key()]
    const asGuest = await connect(relay.url, guest)
    const asMember = await connect(relay.url, member)
    const say = who => who.sign({ kind: 9, content: `${Math.random()}`, tags: [['h', room]] })
    assert.equal(await manage('setchannel', room, { access: 'invite', members: [member.pk], admins: [] }), true)
    const first = await put(asMember, say(member))
    const sub = subscribe(asGuest, [{ '#h': [room] }, { '#t': [room] }])
    await sub.settled()
    assert.deepEqual(sub.seen, [])
    assert.equal((await publish(asGuest, say(guest))).ok, false)
    assert.equal(await manage('addchannelmember', room, guest.pk), true)
    assert.deepEqual((await query(asGuest, [{ '#h': [room] }])).ids, [first.id])
    await put(asGuest, say(guest))
    assert.equal(await manage('removechannelmember', room, guest.pk), true)
    const secret = await put(asMember, say(member))
    const marker = await put(asMember, member.sign({ kind: 1, tags: [['t', room]] }))
    assert.ok(!(await sub.upTo(marker.id)).includes(secret.id), 'live, after removal')
    assert.deepEqual((await query(asGuest, [{ '#h': [room] }])).ids, [])
    assert.equal((await publish(asGuest, say(guest))).ok, false)
  })

  test('bans survive kill -9', async () => {
    const who = key()
    const event = await put(client, key().sign({ kind: 1 }))
    await manage('banpubkey', who.pk)
    await manage('banevent', event.id)
    relay = await relay.crashAndRestart()
    client = await connect(relay.url)
    assert.match((await publish(client, who.sign({ kind: 1 }))).message, /^blocked:/)
    assert.match((await publish(client, event)).message, /^blocked:/)
  })

  // The last one: with a list of allowed kinds a relay may refuse every kind that is not on it.
  test('a disallowed kind is refused until it is allowed', async () => {
    assert.equal(await manage('disallowkind', 7777), true)
    assert.ok((await manage('listdisallowedkinds')).includes(7777))
    assert.equal((await publish(client, key().sign({ kind: 7777 }))).ok, false)
    await put(client, key().sign({ kind: 7778 }))
    assert.equal(await manage('allowkind', 7777), true)
    assert.ok((await manage('listallowedkinds')).includes(7777))
    assert.ok(!(await manage('listdisallowedkinds')).includes(7777))
    await put(client, key().sign({ kind: 7777 }))
  })
})

// ---------------------------------------------------------------- Blossom (BUD-01, 02, 06; kind 24242)

describe('blobs', () => {
  const blobOf = text => new Blob([text], { type: 'text/plain' })
  const hashOf = text => hex(sha256(text))
  const blossom = who => new BlossomClient(relay.http, new PlainKeySigner(who.sk))
  const auth = (who, verb, hash, change = {}) => {
    const tags = [['t', verb], ['expiration', `${now() + 60}`], ...(hash ? [['x', hash]] : [])]
    return `Nostr ${Buffer.from(JSON.stringify(who.sign({ kind: 24_242, content: verb, tags, ...change }))).toString('base64')}`
  }
  const upload = (body, authorization) => fetch(`${relay.http}/upload`, {
    method: 'PUT', body, headers: { 'content-type': 'text/plain', ...(authorization && { authorization }) },
  })

  test('an uploaded blob is served unchanged to everyone, with or without a file extension', async () => {
    const text = `artifact ${Math.random()}`
    const descriptor = await blossom(member).uploadBlob(blobOf(text))
    assert.equal(descriptor.sha256, hashOf(text))
    assert.equal(descriptor.size, text.length)
    assert.match(descriptor.type, /^text\/plain/)
    assert.ok(Math.abs(descriptor.uploaded - now()) < 60)
    assert.ok(descriptor.url.includes(descriptor.sha256))
    assert.equal(await (await fetch(descriptor.url)).text(), text)
    assert.equal(Buffer.from(await blossom(key()).download(descriptor.sha256)).toString(), text)
    for (const path of [descriptor.sha256, `${descriptor.sha256}.txt`]) {
      const got = await fetch(`${relay.http}/${path}`)
      assert.equal(await got.text(), text)
      assert.match(got.headers.get('content-type'), /^text\/plain/)
      assert.equal(got.headers.get('access-control-allow-origin'), '*')
      const head = await fetch(`${relay.http}/${path}`, { method: 'HEAD' })
      assert.equal(head.status, 200)
      assert.equal(head.headers.get('content-length'), `${text.length}`)
    }
  })

  test('is listed for its uploader and deleted by its uploader only', async () => {
    const text = `to be deleted ${Math.random()}`
    const hash = hashOf(text)
    await blossom(member).uploadBlob(blobOf(text))
    assert.ok((await blossom(member).list()).some(d => d.sha256 === hash))
    await assert.rejects(blossom(key()).delete(hash))
    await blossom(member).check(hash)
    await blossom(member).delete(hash)
    await assert.rejects(blossom(member).check(hash))
    assert.equal((await fetch(`${relay.http}/${hash}`)).status, 404)
    assert.ok(!(await blossom(member).list()).some(d => d.sha256 === hash))
  })

  test('an upload or a deletion without a fitting kind 24242 token is refused', async () => {
    const text = `refused ${Math.random()}`
    const hash = hashOf(text)
    const tags = (verb, x, expiration = now() + 60) => ({ tags: [['t', verb], ['x', x], ['expiration', `${expiration}`]] })
    const wrong = {
      none: undefined,
      'another verb': auth(member, 'get', hash),
      'another blob': auth(member, 'upload', hashOf('other')),
      'no blob': auth(member, 'upload', null),
      'another kind': auth(member, 'upload', hash, { kind: 27_235 }),
      expired: auth(member, 'upload', hash, tags('upload', hash, now() - 5)),
      'no expiration': auth(member, 'upload', hash, { tags: [['t', 'upload'], ['x', hash]] }),
      'not yet created': auth(member, 'upload', hash, { created_at: now() + 600 }),
    }
    for (const [what, token] of Object.entries(wrong)) {
      const { status } = await upload(text, token)
      assert.ok(status >= 400 && status < 500, `${what}: ${status}`)
    }
    assert.equal((await fetch(`${relay.http}/${hash}`)).status, 404)
    await blossom(member).uploadBlob(blobOf(text))
    for (const token of [undefined, auth(member, 'upload', hash), auth(member, 'delete', hashOf('other'))]) {
      const answer = await fetch(`${relay.http}/${hash}`, { method: 'DELETE', headers: token ? { authorization: token } : {} })
      assert.ok(answer.status >= 400 && answer.status < 500)
    }
    assert.equal((await fetch(`${relay.http}/${hash}`)).status, 200)
  })

  test('an upload can be asked about beforehand (BUD-06)', async () => {
    const text = `asked ${Math.random()}`
    const head = (size, token) => fetch(`${relay.http}/upload`, {
      method: 'HEAD',
      headers: { 'x-sha-256': hashOf(text), 'x-content-type': 'text/plain', 'x-content-length': `${size}`, ...(token && { authorization: token }) },
    })
    assert.equal((await head(text.length, auth(member, 'upload', hashOf(text)))).status, 200)
    const tooBig = await head(2 ** 50, auth(member, 'upload', hashOf(text)))
    assert.ok(tooBig.status >= 400 && tooBig.status < 500, `${tooBig.status}`)
  })

  test('an unknown blob is 404 and a path that is no hash reaches no file', async () => {
    assert.equal((await fetch(`${relay.http}/${nobody()}`)).status, 404)
    for (const path of ['/..%2f..%2fskep.toml', `/${'g'.repeat(64)}`, '/%2e%2e/skep.toml']) {
      const answer = await fetch(relay.http + path)
      assert.ok(answer.status >= 400, path)
      assert.ok(!(await answer.text()).includes('[relay]'))
    }
  })
})
