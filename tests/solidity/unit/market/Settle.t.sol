// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {ITaskMarket} from "../../../../contracts/interfaces/ITaskMarket.sol";
import {TaskId, TaskSpec, TaskState, Unit, UnitStatus} from "../../../../contracts/types/Task.sol";
import {World} from "../../support/World.sol";

contract SettleTest is World {
    TaskSpec internal spec;
    TaskId internal task;

    function setUp() public override {
        super.setUp();
        spec = aSpec();
        task = post(spec);
    }

    /* ACCEPT */

    function testFuzz_accept_reverts_unless_revealed(uint256 status) external {
        UnitStatus have = _other(status, UnitStatus.Revealed);
        bringTo(spec, 0, alice, have);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Revealed));
        vm.prank(requester);
        market.accept(spec, 0, "");
    }

    function test_accept_reverts_when_the_signature_is_not_the_requesters() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        bytes memory forged = acceptanceOf(spec, 0, alice.operatorKey);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongAcceptance.selector, alice.operator, requester));
        market.accept(spec, 0, forged);
        _malformed(hex"1234");
    }

    function testFuzz_accept_without_a_signature_is_the_requesters_alone(address caller) external {
        vm.assume(caller != requester);
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongAcceptance.selector, caller, requester));
        vm.prank(caller);
        market.accept(spec, 0, "");
    }

    function test_accept_holds_the_requester_to_the_result_it_signed_for() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        bringTo(spec, 1, alice, UnitStatus.Revealed);
        bytes memory forOther = acceptanceOf(spec, 1, requesterKey);
        vm.expectRevert();
        vm.prank(requester);
        market.accept(spec, 0, forOther);
    }

    function test_accept_reverts_when_the_signature_has_a_high_s() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        bytes memory good = acceptanceOf(spec, 0, requesterKey);
        (bytes32 r, bytes32 s, uint8 v) = _split(good);
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        _malformed(abi.encodePacked(r, order - uint256(s), v == 27 ? uint8(28) : uint8(27)));
    }

    function test_accept_reverts_when_the_signature_is_for_another_unit_or_result() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        bringTo(spec, 1, alice, UnitStatus.Revealed);
        bytes memory forOther = acceptanceOf(spec, 1, requesterKey);
        vm.expectRevert();
        market.accept(spec, 0, forOther);
        assertTrue(statusOf(spec, 0) == UnitStatus.Revealed, "still revealed");
    }

    function test_accept_by_the_requester_needs_no_signature() external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitFinalised(task, 0, alice.id, alice.owner, spec.unitPrice, true);
        vm.prank(requester);
        market.accept(spec, 0, "");
        _paidOnce(0);
    }

    function testFuzz_accept_by_anybody_with_the_requesters_signature(address caller) external {
        vm.assume(caller != alice.owner);
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        bytes memory signature = acceptanceOf(spec, 0, requesterKey);
        vm.prank(caller);
        market.accept(spec, 0, signature);
        _paidOnce(0);
        assertEq(market.credit(caller), 0, "the caller gains nothing");
    }

    /* FINALISE */

    function testFuzz_finalise_reverts_unless_revealed(uint256 status) external {
        UnitStatus have = _other(status, UnitStatus.Revealed);
        bringTo(spec, 0, alice, have);
        vm.warp(block.timestamp + 365 days);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Revealed));
        market.finalise(spec, 0);
    }

    function testFuzz_finalise_reverts_until_the_challenge_window_is_over(uint256 wait) external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        uint256 until = block.timestamp + spec.challengeWindow;
        vm.warp(block.timestamp + bound(wait, 0, spec.challengeWindow));
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TooEarly.selector, until + 1, block.timestamp));
        market.finalise(spec, 0);
    }

    function testFuzz_finalise_by_anybody_after_the_challenge_window(address caller, uint32 late) external {
        bringTo(spec, 0, alice, UnitStatus.Revealed);
        vm.warp(block.timestamp + spec.challengeWindow + 1 + late);
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitFinalised(task, 0, alice.id, alice.owner, spec.unitPrice, false);
        vm.prank(caller);
        market.finalise(spec, 0);
        _paidOnce(0);
    }

    function test_an_aggregation_unit_pays_its_own_price() external {
        for (uint32 shard = 0; shard < 3; shard++) {
            work(spec, shard, alice);
        }
        bringTo(spec, 3, bob, UnitStatus.Finalised);
        assertEq(market.credit(bob.owner), spec.aggregationPrice, "pay");
    }

    /* EXPIRE */

    function testFuzz_expire_reverts_when_the_worker_owes_no_move(uint256 which) external {
        UnitStatus[3] memory settled = [UnitStatus.Open, UnitStatus.Revealed, UnitStatus.Finalised];
        UnitStatus have = settled[which % 3];
        bringTo(spec, 0, alice, have);
        vm.warp(block.timestamp + 365 days);
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongStatus.selector, task, 0, have, UnitStatus.Claimed));
        market.expire(spec, 0);
    }

    function testFuzz_expire_reverts_until_the_workers_window_is_over(bool committed, uint256 wait) external {
        bringTo(spec, 0, alice, committed ? UnitStatus.Committed : UnitStatus.Claimed);
        uint256 window = committed ? spec.revealWindow : spec.computeWindow;
        uint256 until = block.timestamp + window;
        vm.warp(block.timestamp + bound(wait, 0, window));
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.TooEarly.selector, until + 1, block.timestamp));
        market.expire(spec, 0);
    }

    function testFuzz_expire_reopens_the_unit_as_if_never_claimed(bool committed) external {
        bringTo(spec, 0, alice, committed ? UnitStatus.Committed : UnitStatus.Claimed);
        pastDeadlineOf(spec, 0);
        vm.expectEmit(address(market));
        emit ITaskMarket.UnitExpired(task, 0, alice.id, spec.collateral, stranger);
        vm.prank(stranger);
        market.expire(spec, 0);

        Unit memory unit = market.getUnit(task, 0);
        assertTrue(unit.status == UnitStatus.Open, "open");
        assertEq(unit.attempt, 1, "attempt");
        assertEq(unit.result, 0, "no result");
        assertEq(unit.finalStateRoot, 0, "no final state");
        assertEq(uint256(unit.deadline) + unit.commitBlock, 0, "no clock");
        TaskState memory state = market.getTask(task);
        assertEq(state.inFlight, 0, "in flight");
        assertEq(state.escrow, 66e18, "the escrow is untouched");
    }

    function testFuzz_expire_conserves_the_collateral_to_the_wei(uint96 collateral, bool committed) external {
        TaskSpec memory other = aSpec();
        other.unitPrice = 1;
        other.aggregationPrice = 0;
        other.collateral = uint96(bound(collateral, 1, STAKE));
        post(other);
        bringTo(other, 0, alice, committed ? UnitStatus.Committed : UnitStatus.Claimed);
        pastDeadlineOf(other, 0);
        uint256 supply = token.totalSupply();
        vm.prank(stranger);
        market.expire(other, 0);

        uint256 burned = supply - token.totalSupply();
        assertEq(registry.credit(requester), uint256(other.collateral) * 5_000 / 10_000, "compensation");
        assertEq(registry.credit(stranger), uint256(other.collateral) * 500 / 10_000, "tip");
        assertEq(
            burned + registry.credit(requester) + registry.credit(stranger), other.collateral, "nothing lost or made"
        );
        INodeRegistry.Node memory node = registry.getNode(alice.id);
        assertEq(node.stake, STAKE - other.collateral, "stake");
        assertEq(node.locked, 0, "locked");
    }

    function test_another_node_takes_an_expired_unit_and_finishes_it() external {
        bringTo(spec, 0, alice, UnitStatus.Committed);
        pastDeadlineOf(spec, 0);
        market.expire(spec, 0);
        bringTo(spec, 0, bob, UnitStatus.Finalised);
        assertEq(market.credit(bob.owner), spec.unitPrice, "bob is paid");
        assertEq(market.credit(alice.owner), 0, "alice is not");
    }

    function test_the_counter_of_attempts_saturates() external {
        // 65,535 expiries are cheap to write and dear to run: put the counter at its end by hand.
        claim(spec, 0, alice);
        vm.record();
        Unit memory unit = market.getUnit(task, 0);
        (bytes32[] memory reads,) = vm.accesses(address(market));
        uint256 packed = uint256(vm.load(address(market), reads[0]));
        // slot 0: node 64 bits, status 8, attempt 16.
        vm.store(address(market), reads[0], bytes32(packed | (uint256(type(uint16).max) << 72)));
        unit = market.getUnit(task, 0);
        assertEq(unit.attempt, type(uint16).max, "the right bits");
        assertTrue(unit.status == UnitStatus.Claimed && unit.node == alice.id, "and no others");

        pastDeadlineOf(spec, 0);
        market.expire(spec, 0);
        unit = market.getUnit(task, 0);
        assertEq(unit.attempt, type(uint16).max, "stays");
        assertTrue(unit.status == UnitStatus.Open, "re-opened all the same");
    }

    /* WITHDRAW */

    function testFuzz_withdraw_reverts_when_there_is_no_credit(address payee) external {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NothingToPay.selector, payee));
        market.withdraw(payee);
    }

    function testFuzz_withdraw_pays_the_payee_whoever_calls(address caller) external {
        bringTo(spec, 0, alice, UnitStatus.Finalised);
        uint256 before = token.balanceOf(alice.owner);
        vm.expectEmit(address(market));
        emit ITaskMarket.Paid(alice.owner, spec.unitPrice);
        vm.prank(caller);
        uint96 amount = market.withdraw(alice.owner);
        assertEq(amount, spec.unitPrice, "returned");
        assertEq(token.balanceOf(alice.owner), before + spec.unitPrice, "received");

        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NothingToPay.selector, alice.owner));
        market.withdraw(alice.owner);
    }

    /* READING */

    function test_a_round_reads_as_its_units_in_order() external {
        work(spec, 0, alice);
        claim(spec, 2, bob);
        Unit[] memory units = market.getRound(spec, 0);
        assertEq(units.length, 4, "three shards and their aggregation");
        assertTrue(units[0].status == UnitStatus.Revealed && units[0].node == alice.id, "0");
        assertTrue(units[1].status == UnitStatus.Open && units[1].node.isNone(), "1");
        assertTrue(units[2].status == UnitStatus.Claimed && units[2].node == bob.id, "2");
        assertEq(market.getRound(spec, 1).length, 4, "next round");
        assertEq(market.getRound(spec, 2).length, 0, "past the end");
        assertEq(market.getRound(spec, type(uint32).max).length, 0, "far past the end");
    }

    function test_input_roots_are_zero_while_unknown() external view {
        assertEq(market.inputStateRoot(spec, 0), spec.initialStateRoot, "round 0");
        assertEq(market.inputStateRoot(spec, 1), 0, "round 1");
        assertEq(market.inputStateRoot(spec, 2), 0, "the trained model");
        assertEq(market.inputStateRoot(spec, type(uint32).max), 0, "no such round");
    }

    function _paidOnce(uint32 unit) private {
        assertEq(market.credit(alice.owner), spec.unitPrice, "pay");
        assertEq(market.credit(alice.operator), 0, "the hot key gets nothing");
        assertEq(registry.getNode(alice.id).locked, 0, "collateral free");
        assertEq(registry.freeStake(alice.id), STAKE, "and whole");
        TaskState memory state = market.getTask(task);
        assertEq(state.escrow, 66e18 - spec.unitPrice, "escrow");
        assertEq(state.finalised, 1, "finalised");
        assertEq(state.inFlight, 0, "in flight");

        bytes memory again = acceptanceOf(spec, unit, requesterKey);
        vm.expectRevert(
            abi.encodeWithSelector(
                ITaskMarket.WrongStatus.selector, task, unit, UnitStatus.Finalised, UnitStatus.Revealed
            )
        );
        market.accept(spec, unit, again);
    }

    function _malformed(bytes memory signature) private {
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.WrongAcceptance.selector, address(0), requester));
        market.accept(spec, 0, signature);
    }

    function _other(uint256 status, UnitStatus than) private pure returns (UnitStatus have) {
        have = UnitStatus(bound(status, 0, 4));
        if (have == than) have = UnitStatus.Finalised;
    }

    function _split(bytes memory signature) private pure returns (bytes32 r, bytes32 s, uint8 v) {
        bytes memory rs = new bytes(64);
        for (uint256 i = 0; i < 64; i++) {
            rs[i] = signature[i];
        }
        (r, s) = abi.decode(rs, (bytes32, bytes32));
        v = uint8(signature[64]);
    }
}
