// What an owner does with any client, here an unmodified nostr-tools: a permission answered by a reaction, and the
// agent's bill opened outside of Skep. The agent is a real instance of the binary under test.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, before, describe, test } from 'node:test'
import { decrypt, getConversationKey } from 'nostr-tools/nip44'
import { attest, connect, count, eventually, hangUp, hex, key, now, put, query, startRelay, within } from './harness.mjs'

const owner = key()
const stranger = key()
let relay, client
before(async () => {
  relay = await startRelay({ members: [owner.pk] })
  client = await connect(relay.url, owner)
})
after(async () => { hangUp(); await relay?.stop() })

/** Runs one instance of an agent of the owner. `settings` are lines of its [[agent]] table. */
async function startAgent(settings) {
  const agent = key()
  const home = mkdtempSync(join(tmpdir(), 'skep-owner-'))
  mkdirSync(join(home, 'keys'), { mode: 0o700 })
  writeFileSync(join(home, 'keys', 'bee.key'), hex(agent.sk), { mode: 0o600 })
  const lines = ['[leader]', `dir = ${JSON.stringify(join(home, 'locks'))}`, '[[agent]]', 'name = "bee"']
  lines.push(`auth = ${JSON.stringify(attest(owner, agent.pk))}`, `relays = [${JSON.stringify(relay.url)}]`, ...settings)
  writeFileSync(join(home, 'config.toml'), lines.join('\n') + '\n')
  const env = { PATH: process.env.PATH, HOME: home, SKEP_HOME: home }
  const child = spawn(process.env.SKEP_BIN, ['agent', 'run'], { stdio: ['ignore', 'pipe', 'pipe'], env })
  process.on('exit', () => child.kill('SIGKILL'))
  let stderr = ''
  child.stderr.on('data', chunk => { stderr = (stderr + chunk).slice(-8000) })
  const exited = new Promise(resolve => child.once('exit', resolve))
  const ready = new Promise((resolve, reject) => {
    createInterface({ input: child.stdout }).once('line', resolve)
    exited.then(code => reject(new Error(`the agent ended (${code}):\n${stderr}`)))
  })
  assert.match(await within(ready, 'the agent runs'), /^running bee npub1/)
  return {
    ...agent,
    workdir: join(home, 'agents', 'bee', 'work'),
    async stop() {
      child.kill('SIGTERM')
      await within(exited, 'exit after SIGTERM').finally(() => child.kill('SIGKILL'))
      rmSync(home, { recursive: true, force: true })
    },
  }
}

const demo = () => [`command = ${JSON.stringify(process.env.SKEP_BIN)}`, 'args = ["agent", "demo"]']
const mention = (agent, text) => owner.sign({ kind: 1, content: text, tags: [['p', agent.pk]] })

/** What the agent says under an event, of which `test` is true. */
const said = (agent, event, test, what) => eventually(async () => {
  const { events } = await query(client, [{ kinds: [1], authors: [agent.pk], '#e': [event.id] }])
  return events.find(test)
}, what)

const isCard = event => event.tags.some(tag => tag[0] === 'permission')

describe('a permission card', () => {
  let agent
  before(async () => { agent = await startAgent(demo()) })
  after(async () => { await agent?.stop() })

  const ask = async name => {
    const asked = await put(client, mention(agent, `write ${name}`))
    const card = await said(agent, asked, isCard, 'the card')
    return { asked, card, file: join(agent.workdir, name) }
  }
  const react = (who, card, content) =>
    who.sign({ kind: 7, content, tags: [['e', card.id], ['p', agent.pk], ['k', '1']] })

  test('says for programs what an answer needs, and until when', async () => {
    const { card } = await ask('form.txt')
    const [name, nonce, channel, turn, allow, reject, expires, ...rest] = card.tags.find(tag => tag[0] === 'permission')
    assert.deepEqual([name, channel, allow, reject, rest], ['permission', `notes:${owner.pk}`, 'allow', 'reject', []])
    assert.match(nonce, /^[0-9a-f]{32,64}$/)
    assert.match(turn, /^[0-9a-f]{32}$/)
    assert.ok(Number(expires) > now() + 200 && Number(expires) <= now() + 301, expires)
    assert.ok(card.content.includes('Write form.txt') && card.content.includes(nonce))
    await put(client, react(owner, card, '👎'))
  })

  test('is allowed by a 👍 of the owner, and closed for all to see', async () => {
    const { asked, card, file } = await ask('yes.txt')
    await put(await connect(relay.url, stranger), react(stranger, card, '👍'))
    await put(client, react(owner, card, '👍'))
    const reply = await said(agent, asked, event => !isCard(event), 'the answer')
    assert.equal(reply.content, 'I wrote yes.txt.')
    assert.ok(existsSync(file))
    const events = await eventually(async () => {
      const { events } = await query(client, [{ kinds: [7], authors: [agent.pk], '#e': [card.id] }])
      return events.length > 0 && events
    }, 'the mark on the card')
    assert.deepEqual(events.map(event => event.content), ['☑️'])
  })

  test('is rejected by a 👎, and a 👍 of somebody else does nothing', async () => {
    const { asked, card, file } = await ask('no.txt')
    await put(await connect(relay.url, stranger), react(stranger, card, '👍'))
    await put(client, react(owner, card, '👎'))
    const reply = await said(agent, asked, event => !isCard(event), 'the answer')
    assert.equal(reply.content, 'You said no: I did not write no.txt.')
    assert.ok(!existsSync(file))
  })

  test('that was decided stays so, and who is late is told', async () => {
    const { asked, card, file } = await ask('late.txt')
    await put(client, react(owner, card, '👎'))
    await said(agent, asked, event => !isCard(event), 'the answer')
    await put(client, react(owner, card, '👍'))
    const late = await said(agent, card, () => true, 'a word to who was late')
    assert.match(late.content, /^Too late/)
    assert.ok(!existsSync(file))
  })
})

/** A model server that answers in a stream and remembers what it billed. */
async function startModel() {
  const bills = []
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const chunk of request) body += chunk
    const input = Math.ceil(body.length / 4)
    const bill = { input, cached: Math.floor(input / 3), output: 5 }
    bills.push(bill)
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    const chunk = { id: 'c', object: 'chat.completion.chunk', created: 1, model: 'm' }
    const send = rest => response.write(`data: ${JSON.stringify({ ...chunk, ...rest })}\n\n`)
    for (const content of ['All ', 'is ', 'well.']) send({ choices: [{ index: 0, delta: { role: 'assistant', content } }] })
    send({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })
    const prompt_tokens_details = { cached_tokens: bill.cached }
    const total_tokens = bill.input + bill.output
    send({ choices: [], usage: { prompt_tokens: bill.input, completion_tokens: bill.output, total_tokens, prompt_tokens_details } })
    response.end('data: [DONE]\n\n')
  })
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve))
  return { bills, url: `http://127.0.0.1:${server.address().port}/v1`, stop: () => server.close() }
}

describe('a bill', () => {
  let agent, model
  before(async () => {
    model = await startModel()
    agent = await startAgent(['backend = "openai"', `base_url = ${JSON.stringify(model.url)}`, 'model = "m"'])
  })
  after(async () => { await agent?.stop(); model?.stop() })

  /** What the owner's client finds, opened by nostr-tools. */
  const bills = many => eventually(async () => {
    const { events } = await query(client, [{ kinds: [44_200], '#p': [owner.pk], authors: [agent.pk] }])
    const opened = events.map(event => ({ event, ...JSON.parse(decrypt(event.content, getConversationKey(owner.sk, agent.pk))) }))
    return opened.length === many && opened.sort((a, b) => a.turnSeq - b.turnSeq)
  }, `${many} bills`)

  test('opened outside is what the model billed, to the token', async () => {
    for (const [n, text] of ['how are you?', 'and now?'].entries()) {
      const asked = await put(client, mention(agent, text))
      const reply = await said(agent, asked, () => true, 'the answer')
      assert.equal(reply.content, 'All is well.')
      await bills(n + 1)
    }
    const opened = await bills(2)
    assert.equal(model.bills.length, 2)
    opened.forEach(({ turn, turnSeq, model: name, stopReason, deltaReliable, sessionId }, n) => {
      const { input, cached, output } = model.bills[n]
      assert.deepEqual(turn, {
        inputTokens: input, outputTokens: output, totalTokens: input + output, costUsd: null, cacheReadTokens: cached,
      })
      assert.deepEqual([turnSeq, name, stopReason, deltaReliable], [n + 1, 'm', 'end_turn', true])
      assert.equal(sessionId, opened[0].sessionId)
    })
  })

  test('is for its owner only: a stranger and the agent itself find nothing, and open nothing', async () => {
    const [{ event }] = await bills(2)
    for (const who of [stranger, agent]) {
      const other = await connect(relay.url, who)
      for (const filter of [{ ids: [event.id] }, { authors: [agent.pk] }, { kinds: [44_200], '#p': [owner.pk] }, {}]) {
        const { events } = await query(other, [filter])
        assert.ok(!events.some(found => found.kind === 44_200), JSON.stringify(filter))
      }
      const { count: found, closed } = await count(other, [{ ids: [event.id] }])
      assert.ok(closed !== undefined || found === 0, `${found}`)
    }
    assert.throws(() => decrypt(event.content, getConversationKey(stranger.sk, agent.pk)))
    assert.ok(!event.tags.some(tag => tag[0] === 'h'), 'how busy a channel is stays inside')
  })
})
