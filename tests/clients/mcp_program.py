"""An agent program of which nothing but the Agent Client Protocol is by our hand: it uses its tools with the official
Python MCP SDK, as it was told to in session/new, and writes what came of it into report.json and late.json."""

import asyncio
import json
import sys
import traceback
from pathlib import Path

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

PATIENCE = 30


def send(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


async def call(session: ClientSession, tool: str, arguments: dict) -> dict:
    result = await session.call_tool(tool, arguments)
    return {"is_error": bool(result.is_error), "text": "".join(part.text for part in result.content)}


async def turn(request: dict, server: dict, cwd: Path) -> None:
    env = {pair["name"]: pair["value"] for pair in server["env"]}
    parameters = StdioServerParameters(command=server["command"], args=server["args"], env=env)
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        hello = await session.initialize()
        listed = await session.list_tools()
        report = {
            "server": server,
            "protocol": hello.protocol_version,
            "name": hello.server_info.name,
            "instructions": hello.instructions,
            "tools": {tool.name: tool.input_schema for tool in listed.tools},
            "descriptions": {tool.name: tool.description for tool in listed.tools},
            "good": await call(session, "progress", {"text": "half of it is done"}),
            "bad": await call(session, "progress", {"words": 1}),
            "agents": await call(session, "agents", {}),
            "not_granted": await call(session, "ask_agent", {"name": "x", "text": "y"}),
            "unknown": await call(session, "no_such_tool", {"name": "x", "text": "y"}),
        }
        # One every two seconds; by then the first one has reached whoever watches. A machine may have been slower
        # than that since the first, but not between each of these.
        for _ in range(PATIENCE):
            report["soon"] = await call(session, "progress", {"text": "nearly there"})
            if report["soon"]["is_error"]:
                break
        for _ in range(PATIENCE * 10):
            report["later"] = await call(session, "progress", {"text": "nearly there"})
            if not report["later"]["is_error"]:
                break
            await asyncio.sleep(0.1)
        (cwd / "report.json").write_text(json.dumps(report))
        text = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "done"}}
        send({"method": "session/update", "params": {"sessionId": "s", "update": text}})
        send({"id": request["id"], "result": {"stopReason": "end_turn"}})
        # One that was begun before the harness had read that the turn is over ends with the turn; those after it find none.
        late = []
        for _ in range(PATIENCE * 10):
            late.append(await call(session, "agents", {}))
            if late[-1]["is_error"] and len(late) > 1 and late[-2]["is_error"]:
                break
            await asyncio.sleep(0.1)
        (cwd / "late.part").write_text(json.dumps(late))
        (cwd / "late.part").rename(cwd / "late.json")


async def told(work, request: int) -> None:
    """What fails is told to the harness, and the turn ends."""
    try:
        await work
    except BaseException as error:
        message = "".join(traceback.format_exception(error))[-1500:]
        send({"id": request, "error": {"code": -32603, "message": message}})
        raise


async def main() -> None:
    server, cwd, tasks = None, Path("."), set()
    while line := await asyncio.to_thread(sys.stdin.readline):
        message = json.loads(line)
        match message.get("method"):
            case "initialize":
                info = {"name": "mcp-program", "version": "1"}
                send({"id": message["id"], "result": {"protocolVersion": 1, "agentInfo": info}})
            case "session/new":
                cwd, (server,) = Path(message["params"]["cwd"]), message["params"]["mcpServers"]
                send({"id": message["id"], "result": {"sessionId": "s"}})
            case "session/prompt":
                tasks.add(asyncio.create_task(told(turn(message, server, cwd), message["id"])))


asyncio.run(main())
