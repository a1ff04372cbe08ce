//! Inverse kinematics of the workbench's arms, in the simulator.
#![allow(clippy::unwrap_used)]

use efference_envs::Env;
use efference_envs::flow::{ArmKind, FlowEnv, FlowOptions, FlowTask};
use efference_geometry::ik::{Chain, ChainReach, IkOptions, solve_ik};
use efference_geometry::plan::Reach;
use efference_geometry::{Isometry3, Vector3, pose_distance};

#[test]
fn both_arms_reach_what_they_can_and_say_so() {
    for kind in ArmKind::ALL {
        let mut env = FlowEnv::new(FlowTask::Pour, kind, &FlowOptions::default()).unwrap();
        env.reset(3).unwrap();
        let mut probe = env.probe().unwrap();
        let rest = probe.rest().to_vec();
        let chain = probe.chain();
        let limits = chain.limits();
        let options = IkOptions { restarts: 30, ..IkOptions::default() };
        for k in 0..25 {
            // Joints all over the inner nine tenths of their ranges.
            let share = |j: usize| 0.05 + 0.9 * ((k * 7 + j * 13 + k * j * 3) % 29) as f64 / 28.0;
            let q: Vec<f64> = limits.iter().enumerate().map(|(j, [l, h])| l + share(j) * (h - l)).collect();
            let (target, jacobian) = chain.forward(&q);
            let mut moved = q.clone();
            moved[k % q.len()] += 1e-6;
            let shift = chain.forward(&moved).0.translation.vector - target.translation.vector;
            let column = jacobian.column(k % q.len());
            assert!((shift / 1e-6 - Vector3::new(column[0], column[1], column[2])).norm() < 1e-3);
            let found = solve_ik(&chain, &target, &rest, &options).unwrap();
            let (distance, angle) = pose_distance(&chain.forward(&found.joints).0, &target);
            assert!(found.reached && distance <= 1e-3 && angle <= 0.01, "{kind:?} {k}: {found:?}");
            assert!(found.joints.iter().zip(&limits).all(|(q, [l, h])| (l..=h).contains(&q)));
        }
        let far = Isometry3::translation(0.0, 5.0, 0.2);
        let arm = ChainReach { chain: &chain, start: &rest, options: IkOptions { restarts: 2, ..options } };
        assert!(!arm.reach(&far).success);
        let near = chain.forward(&rest).0;
        let reached = arm.reach(&near);
        assert!(reached.success && reached.iterations == 0 && reached.joints.len() == kind.joints());
    }
}
