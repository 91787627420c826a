// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {World} from "../../support/World.sol";

contract SlashTest is World {
    address private harmed = vm.addr(keyOf("harmed"));
    address private reporter = vm.addr(keyOf("reporter"));

    function testFuzz_reverts_when_too_little_is_burned(uint96 amount, uint96 toHarmed) external {
        amount = uint96(bound(amount, 1, STAKE));
        uint256 most = amount - (uint256(amount) * 3_000 + 9_999) / 10_000;
        toHarmed = uint96(bound(toHarmed, most + 1, type(uint96).max / 2));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.SlashTooLarge.selector, toHarmed, most));
        _slash(0, amount, toHarmed, 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.SlashTooLarge.selector, toHarmed, most));
        _slash(0, amount, toHarmed / 2, toHarmed - toHarmed / 2);
    }

    function test_reverts_when_a_share_has_nobody_to_go_to() external {
        vm.startPrank(address(market));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "harmed"));
        registry.slash(alice.id, 0, 10, INodeRegistry.Split(address(0), 1, reporter, 1));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "reporter"));
        registry.slash(alice.id, 0, 10, INodeRegistry.Split(harmed, 1, address(0), 1));
        registry.slash(alice.id, 0, 10, INodeRegistry.Split(address(0), 0, address(0), 0));
        vm.stopPrank();
    }

    function test_reverts_when_it_releases_more_than_is_locked() external {
        _lock(5);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.SlashTooLarge.selector, 6, 5));
        _slash(6, 6, 0, 0);
    }

    function testFuzz_reverts_beyond_what_the_node_has_left(uint96 lockedByOthers, uint96 unbonding) external {
        lockedByOthers = uint96(bound(lockedByOthers, 0, STAKE / 2));
        unbonding = uint96(bound(unbonding, 1, STAKE / 4));
        _unbond(unbonding);
        _lock(lockedByOthers);
        uint96 available = STAKE - lockedByOthers;
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.SlashTooLarge.selector, available + 1, available));
        _slash(0, available + 1, 0, 0);

        _slash(0, available, 0, 0);
        INodeRegistry.Node memory node = registry.getNode(alice.id);
        assertEq(node.stake, lockedByOthers, "what other units have locked stays");
        assertEq(node.locked, lockedByOthers, "locked");
        assertEq(registry.tranches(alice.id).length, 0, "unbonding is gone");
    }

    /// @dev Any history of locks and unbonding, any slash: the order of reach and the sum are as promised.
    function testFuzz_takes_locked_then_free_then_unbonding_newest_first(
        uint96 lockedHere,
        uint96 lockedByOthers,
        uint96[3] memory unbonding,
        uint96 amount,
        uint96 toHarmed,
        uint96 toReporter,
        uint32 wait
    ) external {
        uint256 start = block.timestamp;
        for (uint256 i = 0; i < 3; i++) {
            unbonding[i] = uint96(bound(unbonding[i], 1, 2_000e18));
            vm.warp(start + i);
            _unbond(unbonding[i]);
        }
        uint96 stake = STAKE - unbonding[0] - unbonding[1] - unbonding[2];
        lockedHere = uint96(bound(lockedHere, 0, stake));
        lockedByOthers = uint96(bound(lockedByOthers, 0, stake - lockedHere));
        _lock(lockedHere + lockedByOthers);
        // Matured or not makes no difference.
        vm.warp(start + bound(wait, 3, 2 * UNBONDING_S));
        // Half of the time past the free stake, or the tranches would hardly ever be reached.
        amount = uint96(bound(amount, wait % 2 == 0 ? 1 : stake - lockedByOthers + 1, STAKE - lockedByOthers));
        toHarmed = uint96(bound(toHarmed, 0, uint256(amount) * 50 / 100));
        toReporter = uint96(bound(toReporter, 0, uint256(amount) * 15 / 100));
        uint256 supply = token.totalSupply();

        _slash(lockedHere, amount, toHarmed, toReporter);

        assertEq(supply - token.totalSupply(), amount - toHarmed - toReporter, "burned");
        assertEq(registry.credit(harmed), toHarmed, "harmed");
        assertEq(registry.credit(reporter), toReporter, "reporter");
        uint256 fromStake = amount < stake - lockedByOthers ? amount : stake - lockedByOthers;
        assertEq(registry.getNode(alice.id).stake, stake - fromStake, "stake first");
        assertEq(registry.getNode(alice.id).locked, lockedByOthers, "other units' locks stay");
        _newestFirst(unbonding, amount - fromStake);
    }

    function test_takes_the_newest_tranche_before_the_oldest() external {
        uint256 start = block.timestamp;
        _unbond(1_000e18);
        vm.warp(start + 1);
        _unbond(2_000e18);
        vm.warp(start + 2);
        _unbond(3_000e18);
        _slash(0, 4_000e18 + 3_500e18, 0, 0);
        INodeRegistry.Tranche[] memory queue = registry.tranches(alice.id);
        assertEq(queue.length, 2, "the newest is gone");
        assertEq(queue[0].amount, 1_000e18, "the oldest is whole");
        assertEq(queue[1].amount, 1_500e18, "the one between is cut");
        assertEq(queue[1].maturesAt, start + 1 + UNBONDING_S, "in its own time");
        assertEq(registry.getNode(alice.id).stake, 0, "free stake went first");
    }

    function test_emits_where_everything_went() external {
        vm.expectEmit(address(registry));
        emit INodeRegistry.Slashed(alice.id, 100, harmed, 50, reporter, 20, 30);
        _slash(0, 100, 50, 20);
    }

    function test_a_deregistered_nodes_stake_still_answers() external {
        vm.prank(alice.owner);
        registry.deregister(alice.id);
        vm.warp(block.timestamp + 2 * UNBONDING_S);
        _slash(0, STAKE, 0, 0);
        assertEq(registry.tranches(alice.id).length, 0, "gone");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingToWithdraw.selector, alice.id));
        vm.prank(alice.owner);
        registry.withdraw(alice.id);
    }

    function test_one_nodes_slash_leaves_the_others_alone() external {
        _slash(0, STAKE, 0, 0);
        assertEq(registry.freeStake(bob.id), STAKE, "bob");
        assertEq(token.balanceOf(address(registry)), STAKE, "and the tokens for it");
    }

    function testFuzz_collect_pays_the_caller_once(uint96 amount) external {
        amount = uint96(bound(amount, 10, STAKE));
        _slash(0, amount, amount / 2, amount / 10);
        vm.expectEmit(address(registry));
        emit INodeRegistry.Collected(harmed, amount / 2);
        vm.prank(harmed);
        assertEq(registry.collect(), amount / 2, "returned");
        assertEq(token.balanceOf(harmed), amount / 2, "received");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingToCollect.selector, harmed));
        vm.prank(harmed);
        registry.collect();
        assertEq(registry.credit(reporter), amount / 10, "the other's credit stays");
    }

    function _newestFirst(uint96[3] memory unbonding, uint256 taken) private view {
        INodeRegistry.Tranche[] memory queue = registry.tranches(alice.id);
        for (uint256 i = 3; i > 0; i--) {
            uint256 have = i <= queue.length ? queue[i - 1].amount : 0;
            uint256 cut = taken < unbonding[i - 1] ? taken : unbonding[i - 1];
            assertEq(have, unbonding[i - 1] - cut, "newest tranche first");
            taken -= cut;
        }
        assertEq(taken, 0, "all found");
    }

    function _slash(uint96 lockedAmount, uint96 amount, uint96 toHarmed, uint96 toReporter) private {
        vm.prank(address(market));
        registry.slash(alice.id, lockedAmount, amount, INodeRegistry.Split(harmed, toHarmed, reporter, toReporter));
    }

    function _lock(uint96 amount) private {
        vm.prank(address(market));
        registry.lock(alice.id, amount);
    }

    function _unbond(uint96 amount) private {
        vm.prank(alice.owner);
        registry.requestUnbond(alice.id, amount);
    }
}
