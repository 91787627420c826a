// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Admission, Reveal, TaskId, TaskSpec, UnitStatus} from "../../../contracts/types/Task.sol";
import {World} from "../support/World.sol";

/// @notice What each move costs as a transaction of its own: 21,000, calldata and cold storage included, refunds
/// taken off. The figures lie in tests/solidity/snapshots/ and a change of any of them fails, so that it is seen: see
/// tests/solidity/README.md for how to accept it.
/// forge-config: default.isolate = true
contract GasTest is World {
    uint256 private constant POST_MOST = 150_000;
    uint256 private constant CLAIM_MOST = 130_000;
    uint256 private constant COMMIT_MOST = 75_000;

    TaskSpec internal spec;
    TaskId internal task;

    function setUp() public override {
        super.setUp();
        // An ordinary allowance, not the unlimited one that saves a write; and a market that is in use.
        spec = _private(1, 3, 2);
        post(_private(9, 3, 2));
        task = market.taskIdOf(spec);
    }

    function test_gas_of_a_requesters_moves() external {
        vm.prank(requester);
        token.approve(address(market), 66e18);
        _snapshot("approve");
        post(spec);
        assertLe(_snapshot("post"), POST_MOST, "post");

        TaskSpec memory largest = _private(2, 256, 65_535);
        largest.unitPrice = 1e12;
        largest.aggregationPrice = 1e12;
        vm.prank(requester);
        token.approve(address(market), type(uint256).max);
        post(largest);
        assertLe(_snapshot("post of 65,535 rounds x 256 shards"), POST_MOST, "post, the largest plan");

        TaskSpec memory signedFor = _private(3, 3, 2);
        (uint8 v, bytes32 r, bytes32 s) = permitOf(requesterKey, address(market), 66e18, block.timestamp);
        vm.prank(requester);
        market.postWithPermit(signedFor, block.timestamp, v, r, s);
        _snapshot("postWithPermit");

        vm.prank(requester);
        market.cancel(spec);
        _snapshot("cancel");
        market.close(spec);
        _snapshot("close");
        market.withdraw(requester);
        _snapshot("withdraw");
    }

    function test_gas_of_a_unit() external {
        post(spec);
        _claim(0);
        assertLe(_snapshot("claim"), CLAIM_MOST, "claim");
        commit(spec, 0, alice);
        assertLe(_snapshot("commit"), COMMIT_MOST, "commit");
        reveal(spec, 0, alice);
        _snapshot("reveal");
        bytes memory signature = acceptanceOf(spec, 0, requesterKey);
        market.accept(spec, 0, signature);
        _snapshot("accept, first pay of an owner");

        _claim(1);
        commit(spec, 1, alice);
        reveal(spec, 1, alice);
        pastDeadlineOf(spec, 1);
        market.finalise(spec, 1);
        _snapshot("finalise");

        _claim(2);
        pastDeadlineOf(spec, 2);
        market.expire(spec, 2);
        _snapshot("expire");
    }

    function test_gas_of_an_aggregation() external {
        post(spec);
        for (uint32 shard = 0; shard < 3; shard++) {
            _claim(shard);
            commit(spec, shard, alice);
            reveal(spec, shard, alice);
        }
        _claim(3);
        assertLe(_snapshot("claim of an aggregation of 3"), CLAIM_MOST, "claim");
        commit(spec, 3, alice);
        reveal(spec, 3, alice);
        _snapshot("reveal of an aggregation of 3");
        _claim(4);
        assertLe(_snapshot("claim in a later round"), CLAIM_MOST, "claim");
    }

    function test_gas_of_the_widest_aggregation() external {
        TaskSpec memory wide = _private(4, 256, 1);
        post(wide);
        for (uint32 shard = 0; shard < 256; shard++) {
            _claimOf(wide, shard);
            commit(wide, shard, alice);
            reveal(wide, shard, alice);
        }
        _claimOf(wide, 256);
        assertLe(_snapshot("claim of an aggregation of 256"), CLAIM_MOST, "claim");
        commit(wide, 256, alice);
        reveal(wide, 256, alice);
        assertLe(_snapshot("reveal of an aggregation of 256"), 1_000_000, "reveal");
    }

    function test_gas_of_a_nodes_moves() external {
        Worker memory carol = aWorker("carol", 0);
        _registrySnapshot("register");
        registry.stake(carol.id, STAKE);
        _registrySnapshot("stake");
        vm.prank(carol.owner);
        registry.requestUnbond(carol.id, 1e18);
        _registrySnapshot("requestUnbond");
        vm.prank(carol.owner);
        registry.deregister(carol.id);
        _registrySnapshot("deregister");
        vm.warp(block.timestamp + UNBONDING_S);
        vm.prank(carol.owner);
        registry.withdraw(carol.id);
        _registrySnapshot("withdraw");
    }

    function test_code_sizes() external {
        // EIP-170 allows 24,576 bytes.
        vm.snapshotValue("CodeSize", "AvenueToken", address(token).code.length);
        vm.snapshotValue("CodeSize", "NodeRegistry", address(registry).code.length);
        vm.snapshotValue("CodeSize", "TaskMarket", address(market).code.length);
        assertLe(address(market).code.length, 24_576, "market");
    }

    function _private(uint64 seed, uint16 shards, uint32 rounds) private view returns (TaskSpec memory secret) {
        secret = aSpec();
        secret.isPrivate = true;
        secret.seed = seed;
        secret.shards = shards;
        secret.rounds = rounds;
    }

    function _claim(uint32 unit) private {
        _claimOf(spec, unit);
    }

    function _claimOf(TaskSpec memory secret, uint32 unit) private {
        Admission memory admission =
            admissionFor(secret, alice.id, type(uint256).max, uint64(block.timestamp + 1 days), requesterKey);
        vm.prank(alice.operator);
        market.claim(secret, unit, admission);
    }

    function _snapshot(string memory name) private returns (uint256) {
        return vm.snapshotGasLastCall("TaskMarket", name);
    }

    function _registrySnapshot(string memory name) private {
        vm.snapshotGasLastCall("NodeRegistry", name);
    }
}
