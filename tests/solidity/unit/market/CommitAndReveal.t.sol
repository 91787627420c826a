// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {MerkleLib} from "../../../../contracts/libraries/MerkleLib.sol";
import {ResultLib} from "../../../../contracts/libraries/ResultLib.sol";
import {Reveal, TaskId, TaskSpec, Unit, UnitStatus} from "../../../../contracts/types/Task.sol";
import {Trees} from "../../support/Trees.sol";
import {World} from "../../support/World.sol";

contract CommitAndRevealTest is World {
    TaskSpec internal spec;
    TaskId internal task;

    function setUp() public override {
        super.setUp();
        spec = aSpec();
        task = post(spec);
    }

    /* COMMIT */

    function testFuzz_commit_reverts_unless_claimed(uint256 status) external {
        UnitStatus have = UnitStatus(bound(status, 0, 4));
        if (have == UnitStatus.Claimed) have = UnitStatus.Open;
        bringTo(spec, 0, alice, have);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Claimed));
        vm.prank(alice.operator);
        market.commit(task, 0, bytes32(uint256(1)));
    }

    function test_commit_reverts_for_others_than_the_worker() external {
        claim(spec, 0, alice);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotTheWorker.selector, bob.id, alice.id));
        vm.prank(bob.operator);
        market.commit(task, 0, bytes32(uint256(1)));
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAnOperator.selector, alice.owner));
        vm.prank(alice.owner);
        market.commit(task, 0, bytes32(uint256(1)));
    }

    function test_commit_reverts_after_the_compute_window_and_not_at_its_end() external {
        claim(spec, 0, alice);
        claim(spec, 1, alice);
        vm.warp(block.timestamp + spec.computeWindow);
        commit(spec, 0, alice);
        vm.warp(block.timestamp + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TooLate.selector, block.timestamp - 1, block.timestamp));
        vm.prank(alice.operator);
        market.commit(task, 1, bytes32(uint256(1)));
    }

    function test_commit_reverts_when_it_commits_to_nothing() external {
        claim(spec, 0, alice);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.EmptyCommitment.selector));
        vm.prank(alice.operator);
        market.commit(task, 0, 0);
    }

    function testFuzz_commit_stores_the_commitment_and_starts_the_reveal_window(bytes32 commitment) external {
        vm.assume(commitment != 0);
        claim(spec, 0, alice);
        vm.warp(block.timestamp + 17 minutes);
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitCommitted(task, 0, alice.id, commitment);
        vm.prank(alice.operator);
        market.commit(task, 0, commitment);

        Unit memory unit = market.getUnit(task, 0);
        assertTrue(unit.status == UnitStatus.Committed, "committed");
        assertEq(unit.result, commitment, "commitment");
        assertEq(unit.deadline, block.timestamp + spec.revealWindow, "counted from the commit, not from the claim");
        assertEq(unit.commitBlock, block.number, "block");
    }

    function test_a_rotated_operator_carries_on_with_its_units() external {
        claim(spec, 0, alice);
        commit(spec, 0, alice);
        uint256 newKey = keyOf("alice operator 2");
        bytes memory consent = authorization(newKey, alice.owner, block.timestamp);
        vm.prank(alice.owner);
        registry.rotateOperator(alice.id, vm.addr(newKey), block.timestamp, consent);

        Reveal memory opening = openingOf(spec, 0);
        vm.roll(block.number + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAnOperator.selector, alice.operator));
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);
        vm.prank(vm.addr(newKey));
        market.reveal(spec, 0, opening);
        assertTrue(statusOf(spec, 0) == UnitStatus.Revealed, "revealed");
    }

    /* REVEAL */

    function testFuzz_reveal_reverts_unless_committed(uint256 status) external {
        UnitStatus have = UnitStatus(bound(status, 0, 4));
        if (have == UnitStatus.Committed) have = UnitStatus.Claimed;
        bringTo(spec, 0, alice, have);
        Reveal memory opening = openingOf(spec, 0);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Committed));
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);
    }

    function test_reveal_reverts_for_others_than_the_worker() external {
        Reveal memory opening = _committed(0);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotTheWorker.selector, bob.id, alice.id));
        vm.prank(bob.operator);
        market.reveal(spec, 0, opening);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NotAnOperator.selector, stranger));
        vm.prank(stranger);
        market.reveal(spec, 0, opening);
    }

    function test_reveal_reverts_after_the_reveal_window_and_not_at_its_end() external {
        Reveal memory opening = _committed(0);
        Reveal memory other = _committed(1);
        vm.warp(block.timestamp + spec.revealWindow);
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);
        vm.warp(block.timestamp + 1);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TooLate.selector, block.timestamp - 1, block.timestamp));
        vm.prank(alice.operator);
        market.reveal(spec, 1, other);
    }

    function test_reveal_reverts_in_the_block_of_the_commit() external {
        bringTo(spec, 0, alice, UnitStatus.Committed);
        Reveal memory opening = openingOf(spec, 0);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.RevealTooSoon.selector, block.number));
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);
    }

    function test_reveal_reverts_when_the_final_state_is_an_earlier_checkpoint() external {
        Reveal memory opening = _committed(0);
        bytes32[] memory roots = checkpointsOf(spec, 0);
        assertEq(roots.length, 4, "1 + ceil(10 / 4)");
        bytes32[] memory leaves = Trees.leavesOf(roots);
        for (uint256 i = 0; i < 3; i++) {
            opening.finalStateRoot = roots[i];
            opening.proof = Trees.proofOf(leaves, i);
            _finalStateRefused(opening);
        }
    }

    function testFuzz_reveal_reverts_when_the_proof_is_wrong(uint256 bit, bytes32 final_) external {
        Reveal memory opening = _committed(0);
        bytes32 right = opening.finalStateRoot;
        vm.assume(final_ != right);
        opening.finalStateRoot = final_;
        _finalStateRefused(opening);

        opening.finalStateRoot = right;
        bytes32 sibling = opening.proof[0];
        opening.proof[0] = sibling ^ bytes32(1 << (bit % 256));
        _finalStateRefused(opening);

        opening.proof = new bytes32[](1);
        opening.proof[0] = sibling;
        _finalStateRefused(opening);
    }

    function testFuzz_reveal_reverts_when_the_run_has_another_number_of_checkpoints(uint8 count) external {
        count = uint8(bound(count, 2, 9));
        vm.assume(count != 4);
        Reveal memory opening = _committed(0);
        bytes32[] memory roots = new bytes32[](count);
        for (uint256 i = 0; i < count; i++) {
            roots[i] = keccak256(abi.encode(i));
        }
        bytes32[] memory leaves = Trees.leavesOf(roots);
        opening.checkpointsRoot = MerkleLib.rootOf(leaves);
        opening.finalStateRoot = roots[count - 1];
        opening.proof = Trees.proofOf(leaves, count - 1);
        _finalStateRefused(opening);
    }

    function test_reveal_reverts_when_the_final_state_is_zero() external {
        // A zero root would read as "unknown" and block every later round.
        bytes32[] memory roots = checkpointsOf(spec, 0);
        roots[3] = 0;
        bytes32[] memory leaves = Trees.leavesOf(roots);
        Reveal memory opening = Reveal(MerkleLib.rootOf(leaves), 0, Trees.proofOf(leaves, 3), SALT);
        bytes32 resultRoot = market.resultRootOf(spec, 0, alice.id, opening.checkpointsRoot);
        claim(spec, 0, alice);
        vm.prank(alice.operator);
        market.commit(task, 0, ResultLib.commitmentTo(resultRoot, SALT));
        vm.roll(block.number + 1);
        _finalStateRefused(opening);
    }

    function testFuzz_reveal_reverts_when_the_salt_is_another(bytes32 salt) external {
        vm.assume(salt != SALT);
        Reveal memory opening = _committed(0);
        opening.salt = salt;
        _mismatch(0, opening, alice);
    }

    function test_reveal_reverts_when_the_checkpoints_are_others_than_committed() external {
        Reveal memory opening = _committed(0);
        bytes32[] memory roots = checkpointsOf(spec, 0);
        roots[1] = keccak256("another way there");
        bytes32[] memory leaves = Trees.leavesOf(roots);
        opening.checkpointsRoot = MerkleLib.rootOf(leaves);
        opening.proof = Trees.proofOf(leaves, 3);
        _mismatch(0, opening, alice);
    }

    function test_reveal_reverts_when_the_commitment_was_copied_from_another_node() external {
        bytes32 copied = commitmentOf(spec, 0, alice);
        claim(spec, 0, bob);
        vm.prank(bob.operator);
        market.commit(task, 0, copied);
        Reveal memory opening = openingOf(spec, 0);
        vm.roll(block.number + 1);
        _mismatch(0, opening, bob);
    }

    function test_reveal_stores_the_result_and_starts_the_challenge_window() external {
        Reveal memory opening = _committed(0);
        bytes32 resultRoot = market.resultRootOf(spec, 0, alice.id, opening.checkpointsRoot);
        vm.warp(block.timestamp + 5 minutes);
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitRevealed(task, 0, alice.id, resultRoot, opening.checkpointsRoot, opening.finalStateRoot);
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);

        Unit memory unit = market.getUnit(task, 0);
        assertTrue(unit.status == UnitStatus.Revealed, "revealed");
        assertEq(unit.result, resultRoot, "result");
        assertEq(unit.finalStateRoot, opening.finalStateRoot, "final state");
        assertEq(unit.deadline, block.timestamp + spec.challengeWindow, "counted from the reveal");
    }

    function test_a_training_result_binds_everything_it_is() external view {
        bytes32 expected = keccak256(
            abi.encode(
                keccak256("avenue.result.v1"),
                task,
                uint32(1),
                alice.id,
                spec.initialStateRoot,
                spec.dataRoot,
                spec.programRoot,
                spec.steps,
                keccak256("checkpoints")
            )
        );
        assertEq(market.resultRootOf(spec, 1, alice.id, keccak256("checkpoints")), expected, "result root");
    }

    function test_an_aggregation_result_binds_the_shards_it_averages() external {
        bytes32[] memory finals = new bytes32[](3);
        for (uint32 shard = 0; shard < 3; shard++) {
            vm.expectRevert(abi.encodeWithSelector(ITaskMarket.InputNotKnown.selector, task, 0));
            market.resultRootOf(spec, 3, bob.id, keccak256("checkpoints"));
            work(spec, shard, alice);
            finals[shard] = market.getUnit(task, shard).finalStateRoot;
        }
        bytes32 expected = keccak256(
            abi.encode(
                keccak256("avenue.result.v1"),
                task,
                uint32(3),
                bob.id,
                spec.initialStateRoot,
                keccak256(abi.encode(keccak256("avenue.aggregation.v1"), finals)),
                spec.aggregationRoot,
                uint32(1),
                keccak256("checkpoints")
            )
        );
        assertEq(market.resultRootOf(spec, 3, bob.id, keccak256("checkpoints")), expected, "result root");
    }

    function testFuzz_a_plan_of_any_shape_can_be_worked_to_its_end(
        uint8 rounds,
        uint8 shards,
        uint8 steps,
        uint8 interval
    ) external {
        TaskSpec memory any = shards % 4 == 0 ? aSoloSpec() : aSpec();
        any.seed = 5;
        any.rounds = uint32(bound(rounds, 1, 3));
        if (any.shards > 1) any.shards = uint16(bound(shards, 2, 5));
        any.steps = uint32(bound(steps, 1, 40));
        any.checkpointInterval = uint32(bound(interval, 1, any.steps));
        post(any);
        for (uint32 round = 0; round < any.rounds; round++) {
            assertTrue(market.inputStateRoot(any, round) != 0, "input known");
            workRound(any, round, round % 2 == 0 ? alice : bob);
        }
        assertTrue(market.inputStateRoot(any, any.rounds) != 0, "trained");
    }

    function test_result_root_reverts_past_the_end_of_the_plan() external {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NoSuchUnit.selector, 8, 8));
        market.resultRootOf(spec, 8, bob.id, 0);
    }

    /// @dev Alice has committed to the unit, a block ago.
    function _committed(uint32 unit) private returns (Reveal memory opening) {
        bringTo(spec, unit, alice, UnitStatus.Committed);
        vm.roll(block.number + 1);
        return openingOf(spec, unit);
    }

    function _finalStateRefused(Reveal memory opening) private {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.FinalStateNotInCheckpoints.selector));
        vm.prank(alice.operator);
        market.reveal(spec, 0, opening);
    }

    function _mismatch(uint32 unit, Reveal memory opening, Worker memory worker) private {
        bytes32 have = market.getUnit(task, unit).result;
        bytes32 resultRoot = market.resultRootOf(spec, unit, worker.id, opening.checkpointsRoot);
        bytes32 expected = ResultLib.commitmentTo(resultRoot, opening.salt);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.CommitmentMismatch.selector, have, expected));
        vm.prank(worker.operator);
        market.reveal(spec, unit, opening);
    }
}
