// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {NodeRegistry} from "../../../contracts/NodeRegistry.sol";
import {TaskMarket} from "../../../contracts/TaskMarket.sol";
import {ITaskMarket} from "../../../contracts/interfaces/ITaskMarket.sol";
import {HostileToken} from "../../../contracts/mocks/HostileToken.sol";
import {TaskSpec, TaskStatus, UnitStatus} from "../../../contracts/types/Task.sol";
import {World} from "../support/World.sol";

/// @notice AvenueToken has no callback and never fails silently, and the contracts may assume so. They hold without
/// the assumption, too: every effect comes before the interaction, and every return value is looked at. That is why
/// they carry no re-entrancy lock.
contract HostileTokenTest is World {
    HostileToken private hostile;
    TaskSpec private spec;

    function setUp() public override {
        super.setUp();
        hostile = new HostileToken();
        registry = new NodeRegistry(hostile, deployer, MIN_STAKE, UNBONDING_S);
        market = new TaskMarket(hostile, registry);
        vm.prank(deployer);
        registry.bindMarket(address(market));
        hostile.approve(address(registry), type(uint256).max);
        hostile.transfer(requester, 1_000e18);
        vm.prank(requester);
        hostile.approve(address(market), type(uint256).max);
        // Registers with the new registry and stakes there.
        bytes memory consent = authorization(alice.operatorKey, alice.owner, block.timestamp);
        vm.prank(alice.owner);
        alice.id = registry.register(alice.operator, keccak256("key"), "", 0, block.timestamp, consent);
        registry.stake(alice.id, STAKE);
        spec = aSpec();
        post(spec);
    }

    function test_withdraw_entered_again_pays_once() external {
        bringTo(spec, 0, alice, UnitStatus.Finalised);
        hostile.callBack(address(market), abi.encodeCall(market.withdraw, (alice.owner)));
        market.withdraw(alice.owner);
        assertTrue(!hostile.reentered(), "no second payment");
        assertEq(hostile.balanceOf(alice.owner), spec.unitPrice, "paid once");
    }

    function test_post_entered_again_cannot_close_before_it_has_paid() external {
        TaskSpec memory other = aSpec();
        other.seed = 2;
        hostile.callBack(address(market), abi.encodeCall(market.close, (other)));
        post(other);
        assertTrue(!hostile.reentered(), "a posted task cannot be closed at once");
        assertTrue(taskStatusOf(other) == TaskStatus.Posted, "posted");
        assertEq(hostile.balanceOf(address(market)), 132e18, "two escrows");
    }

    function test_post_entered_again_posts_once() external {
        TaskSpec memory other = aSpec();
        other.seed = 2;
        other.requester = address(hostile);
        hostile.transfer(address(hostile), 100e18);
        vm.prank(address(hostile));
        hostile.approve(address(market), 100e18);
        hostile.callBack(address(market), abi.encodeCall(market.post, (other)));
        post(other);
        assertTrue(!hostile.reentered(), "TaskExists");
        assertEq(hostile.balanceOf(address(market)), 132e18, "paid once");
    }

    function test_expire_entered_again_slashes_once() external {
        claim(spec, 0, alice);
        pastDeadlineOf(spec, 0);
        hostile.callBack(address(market), abi.encodeCall(market.expire, (spec, 0)));
        vm.prank(stranger);
        market.expire(spec, 0);
        assertTrue(!hostile.reentered(), "no second slash");
        assertEq(registry.freeStake(alice.id), STAKE - spec.collateral, "one collateral");
        assertEq(market.getTask(market.taskIdOf(spec)).inFlight, 0, "in flight");
    }

    function test_collect_entered_again_pays_once() external {
        claim(spec, 0, alice);
        pastDeadlineOf(spec, 0);
        // The token itself reports, so that it is the token's credit that a call back could take twice.
        vm.prank(address(hostile));
        market.expire(spec, 0);
        hostile.callBack(address(registry), abi.encodeCall(registry.collect, ()));
        vm.prank(address(hostile));
        uint256 paid = registry.collect();
        assertTrue(!hostile.reentered(), "no second payment");
        assertEq(paid, 1e18, "the tip, once");
    }

    function test_registry_withdraw_entered_again_pays_once() external {
        uint256 key = keyOf("hostile operator");
        bytes memory consent = authorization(key, address(hostile), block.timestamp);
        vm.startPrank(address(hostile));
        Worker memory own = Worker(
            registry.register(vm.addr(key), keccak256("key"), "", 0, block.timestamp, consent),
            address(hostile),
            vm.addr(key),
            key
        );
        vm.stopPrank();
        registry.stake(own.id, STAKE);
        vm.prank(address(hostile));
        registry.requestUnbond(own.id, STAKE / 2);
        vm.warp(block.timestamp + UNBONDING_S);
        hostile.callBack(address(registry), abi.encodeCall(registry.withdraw, (own.id)));
        vm.prank(address(hostile));
        assertEq(registry.withdraw(own.id), STAKE / 2, "once");
        assertTrue(!hostile.reentered(), "no second payment");
    }

    /// @dev Prime Intellect and Boundless ignored the token's return value.
    function test_a_transfer_that_fails_silently_reverts() external {
        bringTo(spec, 0, alice, UnitStatus.Finalised);
        hostile.failSilently();
        bytes memory failed = abi.encodeWithSelector(SafeERC20.SafeERC20FailedOperation.selector, address(hostile));
        vm.expectRevert(failed);
        market.withdraw(alice.owner);
        vm.expectRevert(failed);
        registry.stake(alice.id, 1e18);
        TaskSpec memory other = aSpec();
        other.seed = 2;
        vm.expectRevert(failed);
        vm.prank(requester);
        market.post(other);
        assertEq(market.credit(alice.owner), spec.unitPrice, "the credit stays");
        vm.expectRevert(abi.encodeWithSelector(ITaskMarket.NothingToPay.selector, stranger));
        market.withdraw(stranger);
    }
}
