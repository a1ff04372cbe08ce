"""Python LIBERO's side of `cargo xtask bench libero`: a line of JSON comes in, a line of JSON goes out.

    {"suite": "libero_goal", "task": 7, "pictures": false, "state": 0, "idle": 10, "steps": 40}

The answer holds seconds: `reset` (building the scene again, as Python LIBERO does before each episode, and restoring the
saved state), `seconds` of the measured control steps, and `eef`, where the hand is afterwards, to compare with. With pictures
the environment is reset once and the state restored; its two cameras are drawn at every step, which it cannot leave out.
"""

import contextlib
import io
import json
import math
import os
import sys
import time

os.environ.setdefault("MUJOCO_GL", "egl")


def action(step):
    """Small movements of every joint, the same on both sides."""
    return [0.4 * math.sin(0.3 * step + i) for i in range(6)] + [-1.0 if step % 40 < 20 else 1.0]


class Bench:
    def __init__(self, side):
        self.side = side
        # Of one task: without and with pictures.
        self.task, self.envs, self.states = None, {}, None

    def make(self, suite, task, pictures):
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs.env_wrapper import ControlEnv

        tasks = benchmark.get_benchmark(suite)()
        if self.task != (suite, task):
            for env in self.envs.values():
                env.close()
            self.envs = {}
            self.states = tasks.get_task_init_states(task)
            self.task = (suite, task)
        if pictures not in self.envs:
            about = tasks.get_task(task)
            bddl = os.path.join(get_libero_path("bddl_files"), about.problem_folder, about.bddl_file)
            looks = dict(camera_heights=self.side, camera_widths=self.side)
            if not pictures:
                looks = dict(has_offscreen_renderer=False, use_camera_obs=False)
            env = ControlEnv(bddl_file_name=bddl, **looks)
            env.seed(0)
            env.reset()
            self.envs[pictures] = env
        return self.envs[pictures]

    def run(self, order):
        env = self.make(order["suite"], order["task"], order["pictures"])
        start = time.perf_counter()
        if not order["pictures"]:
            env.reset()
        env.set_init_state(self.states[order["state"]])
        reset = time.perf_counter() - start
        # Restoring a state does not restart the count of steps.
        env.env.timestep = 0
        for _ in range(order["idle"]):
            env.step([0.0] * 6 + [-1.0])
        start = time.perf_counter()
        for step in range(order["steps"]):
            obs, _, _, _ = env.step(action(step))
        seconds = time.perf_counter() - start
        if order["pictures"]:
            assert obs["agentview_image"].shape == (self.side, self.side, 3)
        return {"reset": reset, "seconds": seconds, "eef": obs["robot0_eef_pos"].tolist()}


def main():
    import mujoco
    import robosuite

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    bench = Bench(int(sys.argv[1]))
    hello = {"mujoco": mujoco.__version__, "robosuite": robosuite.__version__}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            answer = bench.run(json.loads(line))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
