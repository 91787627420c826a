// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {NodeId} from "../../../../contracts/types/NodeId.sol";
import {Admission, TaskId, TaskSpec, TaskStatus, Unit, UnitStatus} from "../../../../contracts/types/Task.sol";
import {World} from "../../support/World.sol";

contract ClaimTest is World {
    TaskSpec internal spec;
    TaskId internal task;

    function setUp() public override {
        super.setUp();
        spec = aSpec();
        task = post(spec);
    }

    function test_reverts_when_the_task_was_never_posted() external {
        TaskSpec memory other = aSpec();
        other.seed = 2;
        TaskId id = market.taskIdOf(other);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskNotOpen.selector, id, uint8(TaskStatus.None)));
        vm.prank(alice.operator);
        market.claim(other, 0, noAdmission());
    }

    function test_reverts_when_the_task_is_closed() external {
        vm.prank(requester);
        market.cancel(spec);
        market.close(spec);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TaskNotOpen.selector, task, uint8(TaskStatus.Closed)));
        vm.prank(alice.operator);
        market.claim(spec, 0, noAdmission());
    }

    function test_reverts_after_the_deadline_and_not_at_it() external {
        vm.warp(spec.deadline);
        claim(spec, 0, alice);
        vm.warp(uint256(spec.deadline) + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TooLate.selector, spec.deadline, block.timestamp));
        vm.prank(alice.operator);
        market.claim(spec, 1, noAdmission());
    }

    function testFuzz_reverts_past_the_end_of_the_plan(uint32 unit) external {
        unit = uint32(bound(unit, 8, type(uint32).max));
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NoSuchUnit.selector, unit, 8));
        vm.prank(alice.operator);
        market.claim(spec, unit, noAdmission());
    }

    function testFuzz_reverts_when_the_unit_is_taken(uint256 status) external {
        UnitStatus have = UnitStatus(bound(status, 1, 4));
        bringTo(spec, 0, alice, have);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Open));
        vm.prank(bob.operator);
        market.claim(spec, 0, noAdmission());
    }

    function testFuzz_reverts_when_the_round_before_is_not_revealed(uint32 unit) external {
        unit = uint32(bound(unit, 4, 7));
        work(spec, 0, alice);
        work(spec, 1, alice);
        work(spec, 2, alice);
        claim(spec, 3, alice);
        commit(spec, 3, alice);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InputNotKnown.selector, task, 1));
        vm.prank(bob.operator);
        market.claim(spec, unit, noAdmission());
    }

    function testFuzz_reverts_when_a_shard_to_average_is_not_revealed(uint8 missing) external {
        missing = uint8(bound(missing, 0, 2));
        for (uint32 shard = 0; shard < 3; shard++) {
            if (shard != missing) work(spec, shard, alice);
        }
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InputNotKnown.selector, task, 0));
        vm.prank(bob.operator);
        market.claim(spec, 3, noAdmission());

        work(spec, missing, alice);
        claim(spec, 3, bob);
    }

    function test_the_aggregation_of_256_shards_opens_with_the_last_of_them() external {
        TaskSpec memory wide = aSpec();
        wide.shards = 256;
        wide.rounds = 1;
        wide.unitPrice = 1;
        wide.aggregationPrice = 1;
        wide.collateral = 1;
        TaskId id = post(wide);
        for (uint32 shard = 0; shard < 255; shard++) {
            work(wide, shard, alice);
        }
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InputNotKnown.selector, id, 0));
        vm.prank(bob.operator);
        market.claim(wide, 256, noAdmission());
        work(wide, 255, alice);
        work(wide, 256, bob);
        assertTrue(market.inputStateRoot(wide, 1) != 0, "trained");
    }

    function test_reverts_when_the_caller_serves_no_node() external {
        address[3] memory callers = [stranger, alice.owner, requester];
        for (uint256 i = 0; i < callers.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAnOperator.selector, callers[i]));
            vm.prank(callers[i]);
            market.claim(spec, 0, noAdmission());
        }
    }

    function test_reverts_when_the_node_is_below_the_minimum_stake() external {
        Worker memory poor = aWorker("poor", MIN_STAKE - 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeNotActive.selector, poor.id, MIN_STAKE - 1, MIN_STAKE));
        vm.prank(poor.operator);
        market.claim(spec, 0, noAdmission());
    }

    function test_reverts_when_the_node_is_leaving() external {
        vm.prank(alice.owner);
        registry.deregister(alice.id);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAnOperator.selector, alice.operator));
        vm.prank(alice.operator);
        market.claim(spec, 0, noAdmission());
    }

    function test_reverts_when_free_stake_does_not_cover_the_collateral() external {
        TaskSpec memory dear = aSpec();
        dear.collateral = STAKE - 10e18;
        post(dear);
        claim(spec, 0, alice);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.NotEnoughFreeStake.selector, alice.id, STAKE - 20e18, STAKE - 10e18)
        );
        vm.prank(alice.operator);
        market.claim(dear, 0, noAdmission());
    }

    function test_locks_the_collateral_and_starts_the_clock() external {
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitClaimed(
            task, 2, alice.id, spec.initialStateRoot, uint40(block.timestamp + spec.computeWindow)
        );
        claim(spec, 2, alice);

        assertEq(registry.getNode(alice.id).locked, spec.collateral, "locked");
        assertEq(registry.freeStake(alice.id), STAKE - spec.collateral, "free");
        Unit memory unit = market.getUnit(task, 2);
        assertTrue(unit.node == alice.id && unit.status == UnitStatus.Claimed, "claimed by alice");
        assertEq(unit.deadline, block.timestamp + spec.computeWindow, "deadline");
        assertEq(unit.revealWindow, spec.revealWindow, "reveal window copied");
        assertEq(market.getTask(task).inFlight, 1, "in flight");
    }

    function test_a_later_round_starts_from_the_aggregated_state() external {
        workRound(spec, 0, alice);
        bytes32 input = market.getUnit(task, 3).finalStateRoot;
        assertEq(market.inputStateRoot(spec, 1), input, "input of round 1");
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitClaimed(task, 4, bob.id, input, uint40(block.timestamp + spec.computeWindow));
        claim(spec, 4, bob);
    }

    function test_without_aggregation_a_round_starts_from_the_unit_before() external {
        TaskSpec memory solo = aSoloSpec();
        TaskId id = post(solo);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InputNotKnown.selector, id, 1));
        vm.prank(bob.operator);
        market.claim(solo, 1, noAdmission());
        work(solo, 0, alice);
        work(solo, 1, bob);
        work(solo, 2, alice);
        assertEq(market.inputStateRoot(solo, 3), market.getUnit(id, 2).finalStateRoot, "trained model");
    }

    /* PRIVATE TASKS */

    function testFuzz_private_reverts_when_the_admission_does_not_cover_the_shard(uint256 shards) external {
        TaskSpec memory secret = _private();
        Admission memory admission =
            admissionFor(secret, alice.id, shards & ~uint256(2), uint64(block.timestamp), requesterKey);
        _notAdmitted(secret, 1, admission);
    }

    function test_private_reverts_when_the_admission_has_expired() external {
        TaskSpec memory secret = _private();
        uint64 until = uint64(block.timestamp);
        Admission memory admission = admissionFor(secret, alice.id, 1, until, requesterKey);
        vm.warp(until + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.AdmissionExpired.selector, until, until + 1));
        vm.prank(alice.operator);
        market.claim(secret, 0, admission);
    }

    function test_private_reverts_when_the_admission_is_somebody_elses() external {
        TaskSpec memory secret = _private();
        uint64 until = uint64(block.timestamp + 1 days);
        _notAdmitted(secret, 0, admissionFor(secret, bob.id, 1, until, requesterKey));
        _notAdmitted(secret, 0, admissionFor(spec, alice.id, 1, until, requesterKey));
        _notAdmitted(secret, 0, admissionFor(secret, alice.id, 1, until, alice.operatorKey));
        Admission memory stretched = admissionFor(secret, alice.id, 1, until, requesterKey);
        stretched.shards = 3;
        _notAdmitted(secret, 1, stretched);
        _notAdmitted(secret, 0, Admission(1, until, hex"1234"));
        _notAdmitted(secret, 0, Admission(1, until, ""));
        _notAdmitted(secret, 3, Admission(0, until, ""));
    }

    function testFuzz_private_claims_a_shard_that_the_admission_covers(uint256 shards, uint32 shard) external {
        TaskSpec memory secret = _private();
        shard = uint32(bound(shard, 0, 2));
        Admission memory admission =
            admissionFor(secret, alice.id, shards | (1 << shard), uint64(block.timestamp), requesterKey);
        vm.prank(alice.operator);
        market.claim(secret, shard, admission);
        assertTrue(statusOf(secret, shard) == UnitStatus.Claimed, "claimed");
    }

    function test_private_admits_to_aggregation_with_any_shard() external {
        TaskSpec memory secret = _private();
        uint64 until = uint64(block.timestamp + 1 days);
        for (uint32 shard = 0; shard < 3; shard++) {
            Admission memory one = admissionFor(secret, alice.id, 1 << shard, until, requesterKey);
            vm.prank(alice.operator);
            market.claim(secret, shard, one);
            commit(secret, shard, alice);
            reveal(secret, shard, alice);
        }
        Admission memory none = admissionFor(secret, bob.id, 0, until, requesterKey);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAdmitted.selector, bob.id, 3));
        vm.prank(bob.operator);
        market.claim(secret, 3, none);
        Admission memory any = admissionFor(secret, bob.id, 4, until, requesterKey);
        vm.prank(bob.operator);
        market.claim(secret, 3, any);
    }

    function test_public_ignores_the_admission() external {
        vm.prank(alice.operator);
        market.claim(spec, 0, Admission(0, 0, hex"ff"));
        assertTrue(statusOf(spec, 0) == UnitStatus.Claimed, "claimed");
    }

    function _private() private returns (TaskSpec memory secret) {
        secret = aSpec();
        secret.isPrivate = true;
        post(secret);
    }

    function _notAdmitted(TaskSpec memory secret, uint32 unit, Admission memory admission) private {
        if (unit == 3) {
            for (uint32 shard = 0; shard < 3; shard++) {
                Admission memory one = admissionFor(secret, bob.id, 7, uint64(block.timestamp), requesterKey);
                vm.prank(bob.operator);
                market.claim(secret, shard, one);
                commit(secret, shard, bob);
                reveal(secret, shard, bob);
            }
        }
        NodeId node = alice.id;
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAdmitted.selector, node, unit));
        vm.prank(alice.operator);
        market.claim(secret, unit, admission);
    }
}
