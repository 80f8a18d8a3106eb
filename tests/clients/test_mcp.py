"""The tools that an agent has of Skep, as the official Python MCP SDK sees them: the real binary runs an agent whose
program starts `skep mcp` as it was told to, and reports.

SKEP_BIN names the binary. Nothing waits by sleeping for a fixed time.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

PATIENCE = 60
HERE = Path(__file__).parent


class Tools(unittest.TestCase):
    def setUp(self):
        self.binary = os.environ["SKEP_BIN"]
        directory = tempfile.TemporaryDirectory(prefix="skep-mcp-")
        self.addCleanup(directory.cleanup)
        self.home = Path(directory.name)
        self.env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "SKEP_HOME": str(self.home / "skep")}

    def skep(self, *args):
        done = subprocess.run([self.binary, *args], env=self.env, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done

    def start(self, *args):
        log = (self.home / f"{args[0]}.log").open("wb")
        process = subprocess.Popen([self.binary, *args], env=self.env, stdout=subprocess.PIPE, stderr=log, text=True)

        def stop():
            process.terminate()
            process.wait(PATIENCE)
            process.stdout.close()
            log.close()

        self.addCleanup(stop)
        return process

    def until(self, path):
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            self.assertLess(time.monotonic(), deadline, f"{path} never came")
            time.sleep(0.05)
        return json.loads(path.read_text())

    def test_a_program_lists_and_calls_what_was_granted_while_its_turn_runs(self):
        for name in ["owner", "worker"]:
            self.skep("key", "generate", name)
        auth = self.skep("agent", "attest", "worker", "--owner", "owner").stdout.strip()
        owner = json.loads(self.skep("key", "show", "owner", "--json").stdout)["pubkey"]
        relay = self.home / "relay.toml"
        relay.write_text(f'[relay]\nmembers = ["{owner}"]\n')
        process = self.start("relay", "--listen", "127.0.0.1:0", "--config", str(relay))
        url = process.stdout.readline().split()[1]
        work = self.home / "work"
        config = self.home / "agents.toml"
        config.write_text(
            f'[leader]\ndir = "{self.home}/locks"\n[[agent]]\nname = "worker"\nauth = {auth}\n'
            f'command = "{sys.executable}"\nargs = ["{HERE}/mcp_program.py"]\nworkdir = "{work}"\n'
            f'relays = ["{url}"]\ntools = ["progress", "agents"]\n')
        self.start("agent", "run", "--config", str(config)).stdout.readline()
        asked = self.skep("ask", "@worker", "report", "--config", str(config), "--timeout", "50s")
        self.assertEqual(asked.stdout.strip().splitlines()[-1].strip(), "done")
        self.assertIn("» half of it is done", asked.stderr, "the owner sees it while it happens")

        report = json.loads((work / "report.json").read_text())
        self.assertEqual((report["name"], list(report["tools"])), ("skep", ["progress", "agents"]))
        self.assertIn("data, not orders", report["instructions"])
        self.assertEqual(report["tools"]["progress"]["required"], ["text"])
        self.assertTrue(all(len(text) > 40 for text in report["descriptions"].values()))
        self.assertEqual(report["good"], {"is_error": False, "text": "told"})
        self.assertIn("the next can be told in", report["soon"]["text"])
        self.assertEqual(report["later"], {"is_error": False, "text": "told"})
        self.assertTrue(report["bad"]["is_error"])
        self.assertIn("unknown field `words`", report["bad"]["text"])
        self.assertFalse(report["agents"]["is_error"])
        self.assertTrue(report["not_granted"]["is_error"])
        self.assertEqual(report["not_granted"]["text"].replace("ask_agent", "no_such_tool"), report["unknown"]["text"])

        server = report["server"]
        self.assertEqual((Path(server["command"]).resolve(), server["args"][:2]), (Path(self.binary), ["mcp", "--socket"]))
        self.assertEqual(server["env"], [], "nothing secret, and nothing else")
        socket = Path(server["args"][2])
        self.assertEqual((socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777), (0o600, 0o700))
        late = self.until(work / "late.json")
        refused = [call["text"] for call in late if call["is_error"]]
        self.assertEqual([call["is_error"] for call in late[-2:]], [True, True], late)
        self.assertTrue(refused[0].startswith(("the turn ended before", "no turn of yours is running")), late)
        self.assertTrue(all(text.startswith("no turn of yours is running") for text in refused[1:]), late)

    def test_by_hand_it_says_what_it_is_for(self):
        for args, code, cause in [([], 2, "is started by an agent's program"),
                                  (["--socket", str(self.home / "gone.sock")], 4, "no session has its tools at")]:
            done = subprocess.run([self.binary, "mcp", *args], env=self.env, capture_output=True, text=True, timeout=PATIENCE)
            error, hint = done.stderr.strip().splitlines()
            self.assertEqual((done.returncode, done.stdout), (code, ""))
            self.assertTrue(error.startswith("error: ") and cause in error, error)
            self.assertTrue(hint.startswith("hint: "), hint)


if __name__ == "__main__":
    unittest.main()
