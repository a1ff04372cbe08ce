"""SciPy's side of `cargo xtask bench flow`: a line of JSON comes in, a line of JSON goes out.

A problem holds a hand (4x4, row-major), keypoints and collision points in its frame, targets of the keypoints [frames][points]
in the world, the workspace, a grid of signed distances over it (positive inside obstacles), and which cost is asked for:

    flow    sum of squared distances of the keypoints from their targets
    rekep   0.8 * sum max(0, distance + 0.10) + (|shift| + 1.5 * angle) from the pose before + 200 * flow

As in ReKep, six numbers (position and extrinsic xyz Euler angles, scaled to -1..1) are found by SLSQP (200 iterations) from
the pose before, without derivatives; with `annealing` the first pose of the chunk is found by dual annealing (5000
evaluations) with SLSQP as local search. The answer holds the seconds of the search and the cost of each pose.
"""

import json
import sys
import time

import numpy as np
import scipy
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import dual_annealing, minimize
from scipy.spatial.transform import Rotation

COLLISION, MARGIN, TURN, FLOW = 0.8, 0.10, 1.5, 200.0


class Problem:
    def __init__(self, order):
        hand = np.array(order["hand"]).reshape(4, 4)
        self.hand = np.concatenate([hand[:3, 3], Rotation.from_matrix(hand[:3, :3]).as_euler("xyz")])
        self.keypoints = np.array(order["keypoints"])
        self.collision_points = np.array(order["collision_points"])
        self.targets = np.array(order["targets"])
        pi = [np.pi] * 3
        self.low = np.concatenate([order["low"], np.negative(pi)])
        self.high = np.concatenate([order["high"], pi])
        side = round(len(order["sdf"]) ** (1 / 3))
        axes = [np.linspace(a, b, side) for a, b in zip(order["low"], order["high"])]
        values = np.array(order["sdf"]).reshape(side, side, side)
        self.sdf = RegularGridInterpolator(axes, values, bounds_error=False, fill_value=0.0)
        self.rekep = order["cost"] == "rekep"

    def normalise(self, x):
        return (x - self.low) / (self.high - self.low) * 2 - 1

    def restore(self, x):
        return (x + 1) / 2 * (self.high - self.low) + self.low

    def cost(self, x, targets, before):
        x = self.restore(x)
        turn = Rotation.from_euler("xyz", x[3:]).as_matrix()
        off = self.keypoints @ turn.T + x[:3] - targets
        flow = np.sum(off * off)
        if not self.rekep:
            return flow
        depth = self.sdf(self.collision_points @ turn.T + x[:3]) + MARGIN
        collision = np.sum(depth[depth > 0])
        position, rotation = before
        cosine = (np.sum(turn * rotation) - 1) / 2
        angle = np.arccos(min(1.0, max(-1.0, cosine)))
        return COLLISION * collision + np.linalg.norm(x[:3] - position) + TURN * angle + FLOW * flow

    def chunk(self, annealing):
        bounds = [(-1.0, 1.0)] * 6
        options = {"maxiter": 200}
        x, costs = np.clip(self.normalise(self.hand), -1, 1), []
        for frame, targets in enumerate(self.targets):
            here = self.restore(x)
            args = (targets, (here[:3], Rotation.from_euler("xyz", here[3:]).as_matrix()))
            if annealing and frame == 0:
                local = {"method": "SLSQP", "options": options, "bounds": bounds}
                found = dual_annealing(
                    self.cost, bounds, args, maxfun=5000, x0=x, rng=0, minimizer_kwargs=local
                )
            else:
                found = minimize(self.cost, x, args, method="SLSQP", bounds=bounds, options=options)
            x = np.clip(found.x, -1, 1)
            costs.append(float(found.fun))
        return costs


def main():
    print(json.dumps({"scipy": scipy.__version__, "numpy": np.__version__}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        problem = Problem(order)
        start = time.perf_counter()
        costs = problem.chunk(order["annealing"])
        print(json.dumps({"seconds": time.perf_counter() - start, "costs": costs}), flush=True)


main()
