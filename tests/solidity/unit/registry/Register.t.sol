// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../../../../contracts/NodeRegistry.sol";
import {IAvenueToken} from "../../../../contracts/interfaces/IAvenueToken.sol";
import {INodeRegistry} from "../../../../contracts/interfaces/INodeRegistry.sol";
import {NodeId} from "../../../../contracts/types/NodeId.sol";
import {World} from "../../support/World.sol";

contract RegisterTest is World {
    bytes32 private constant KEY = keccak256("x25519");

    address private owner = vm.addr(keyOf("carol owner"));
    uint256 private operatorKey = keyOf("carol operator");
    address private operator = vm.addr(keyOf("carol operator"));

    /* REGISTER */

    function test_reverts_when_something_is_zero() external {
        bytes memory signature = authorization(operatorKey, owner, block.timestamp);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "encryptionKey"));
        vm.prank(owner);
        registry.register(operator, 0, "", 0, block.timestamp, signature);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "operator"));
        vm.prank(owner);
        registry.register(address(0), KEY, "", 0, block.timestamp, "");
    }

    function testFuzz_reverts_when_the_endpoint_is_too_long(uint16 length) external {
        length = uint16(bound(length, 257, 2_000));
        bytes memory signature = authorization(operatorKey, owner, block.timestamp);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.EndpointTooLong.selector, length, 256));
        vm.prank(owner);
        registry.register(operator, KEY, string(new bytes(length)), 0, block.timestamp, signature);
    }

    function test_reverts_when_the_operator_serves_a_node_already() external {
        bytes memory signature = authorization(alice.operatorKey, owner, block.timestamp);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.OperatorInUse.selector, alice.operator, alice.id));
        vm.prank(owner);
        registry.register(alice.operator, KEY, "", 0, block.timestamp, signature);
    }

    function testFuzz_reverts_when_the_authorization_has_expired(uint256 deadline) external {
        deadline = bound(deadline, 0, block.timestamp - 1);
        bytes memory signature = authorization(operatorKey, owner, deadline);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.SignatureExpired.selector, deadline, block.timestamp));
        vm.prank(owner);
        registry.register(operator, KEY, "", 0, deadline, signature);
    }

    function test_reverts_when_the_operator_signed_for_another_owner() external {
        bytes memory signature = authorization(operatorKey, stranger, block.timestamp);
        _wrongSignature(signature);
    }

    function test_reverts_when_another_key_signed() external {
        bytes memory signature = authorization(keyOf("stranger"), owner, block.timestamp);
        _wrongSignature(signature);
        _wrongSignature("");
        _wrongSignature(hex"1234");
    }

    function test_reverts_when_signed_for_another_contract_or_chain() external {
        NodeRegistry mine = registry;
        registry = new NodeRegistry(token, deployer, MIN_STAKE, UNBONDING_S);
        bytes memory forOther = authorization(operatorKey, owner, block.timestamp);
        registry = mine;
        _wrongSignature(forOther);

        uint256 here = block.chainid;
        vm.chainId(here + 1);
        bytes memory forFork = authorization(operatorKey, owner, block.timestamp);
        vm.chainId(here);
        _wrongSignature(forFork);
    }

    function test_reverts_when_the_authorization_is_replayed() external {
        bytes memory signature = authorization(operatorKey, owner, block.timestamp);
        vm.startPrank(owner);
        NodeId node = registry.register(operator, KEY, "", 0, block.timestamp, signature);
        assertEq(registry.nonces(operator), 1, "nonce used");
        registry.deregister(node);
        vm.expectRevert();
        registry.register(operator, KEY, "", 0, block.timestamp, signature);
        vm.stopPrank();

        bytes memory fresh = authorization(operatorKey, owner, block.timestamp);
        vm.prank(owner);
        registry.register(operator, KEY, "", 0, block.timestamp, fresh);
    }

    function testFuzz_gives_the_next_id(uint16 length, bytes32 capabilities) external {
        string memory endpoint = string(new bytes(bound(length, 0, 256)));
        bytes memory signature = authorization(operatorKey, owner, block.timestamp);
        NodeId expected = NodeId.wrap(3);
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeRegistered(expected, owner, operator, KEY, endpoint, capabilities);
        vm.prank(owner);
        NodeId node = registry.register(operator, KEY, endpoint, capabilities, block.timestamp, signature);

        assertTrue(node == expected && registry.nodeOf(operator) == expected, "id");
        assertEq(registry.nodeCount(), 3, "count");
        assertEq(registry.ownerOf(node), owner, "owner");
        assertTrue(!registry.isActive(node), "no stake, no work");
        INodeRegistry.Node memory record = registry.getNode(node);
        assertEq(record.registeredAt, block.timestamp, "registered at");
        assertEq(uint256(record.stake) + record.locked, 0, "no stake");
        assertEq(keccak256(bytes(record.endpoint)), keccak256(bytes(endpoint)), "endpoint");
    }

    /* UPDATE */

    function test_update_reverts_for_strangers() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwnerOrOperator.selector, alice.id, stranger));
        vm.prank(stranger);
        registry.update(alice.id, KEY, "", 0);
    }

    function test_update_reverts_when_the_profile_is_unusable() external {
        vm.startPrank(alice.operator);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "encryptionKey"));
        registry.update(alice.id, 0, "", 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.EndpointTooLong.selector, 257, 256));
        registry.update(alice.id, KEY, string(new bytes(257)), 0);
        vm.stopPrank();
    }

    function testFuzz_update_replaces_the_profile_and_nothing_else(bool byOwner, bytes32 capabilities) external {
        INodeRegistry.Node memory before = registry.getNode(alice.id);
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUpdated(alice.id, KEY, "https://new.example", capabilities);
        vm.prank(byOwner ? alice.owner : alice.operator);
        registry.update(alice.id, KEY, "https://new.example", capabilities);

        before.encryptionKey = KEY;
        before.endpoint = "https://new.example";
        before.capabilitiesHash = capabilities;
        assertEq(keccak256(abi.encode(registry.getNode(alice.id))), keccak256(abi.encode(before)), "record");
    }

    /* ROTATE */

    function test_rotate_reverts_for_others_than_the_owner() external {
        bytes memory consent = authorization(operatorKey, alice.operator, block.timestamp);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, alice.id, alice.operator));
        vm.prank(alice.operator);
        registry.rotateOperator(alice.id, operator, block.timestamp, consent);
    }

    function test_rotate_reverts_when_the_new_key_did_not_consent() external {
        bytes memory forged = authorization(alice.operatorKey, alice.owner, block.timestamp);
        vm.expectRevert();
        vm.prank(alice.owner);
        registry.rotateOperator(alice.id, operator, block.timestamp, forged);

        bytes memory late = authorization(operatorKey, alice.owner, block.timestamp - 1);
        vm.expectRevert(
            abi.encodeWithSelector(INodeRegistry.SignatureExpired.selector, block.timestamp - 1, block.timestamp)
        );
        vm.prank(alice.owner);
        registry.rotateOperator(alice.id, operator, block.timestamp - 1, late);
    }

    function test_rotate_reverts_when_the_new_key_serves_a_node() external {
        bytes memory consent = authorization(bob.operatorKey, alice.owner, block.timestamp);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.OperatorInUse.selector, bob.operator, bob.id));
        vm.prank(alice.owner);
        registry.rotateOperator(alice.id, bob.operator, block.timestamp, consent);
    }

    function test_rotate_moves_the_node_to_the_new_key_and_frees_the_old() external {
        bytes memory consent = authorization(operatorKey, alice.owner, block.timestamp);
        vm.expectEmit(address(registry));
        emit INodeRegistry.OperatorRotated(alice.id, alice.operator, operator);
        vm.prank(alice.owner);
        registry.rotateOperator(alice.id, operator, block.timestamp, consent);
        assertTrue(registry.nodeOf(operator) == alice.id, "new key");
        assertTrue(registry.nodeOf(alice.operator).isNone(), "old key");
        assertEq(registry.getNode(alice.id).operator, operator, "record");
        assertEq(registry.freeStake(alice.id), STAKE, "stake stays");
    }

    /* DEREGISTER */

    function test_deregister_reverts_for_others_than_the_owner() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotOwner.selector, alice.id, alice.operator));
        vm.prank(alice.operator);
        registry.deregister(alice.id);
    }

    function test_deregister_reverts_while_units_are_in_flight() external {
        vm.prank(address(market));
        registry.lock(alice.id, 5);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.UnitsInFlight.selector, alice.id, 5));
        vm.prank(alice.owner);
        registry.deregister(alice.id);
    }

    function test_deregister_unbonds_all_and_lets_the_owner_reclaim_it() external {
        vm.expectEmit(address(registry));
        emit INodeRegistry.Deregistered(alice.id);
        vm.expectEmit(address(registry));
        emit INodeRegistry.UnbondRequested(alice.id, STAKE, uint40(block.timestamp + UNBONDING_S));
        vm.prank(alice.owner);
        registry.deregister(alice.id);
        assertTrue(!registry.isActive(alice.id), "out of service");
        assertTrue(registry.nodeOf(alice.operator).isNone(), "the key is free");
        assertTrue(registry.getNode(alice.id).leaving, "leaving");
        INodeRegistry.Tranche[] memory queue = registry.tranches(alice.id);
        assertEq(queue.length, 1, "one tranche");
        assertEq(queue[0].amount, STAKE, "all of it");

        vm.warp(block.timestamp + UNBONDING_S);
        vm.prank(alice.owner);
        registry.withdraw(alice.id);
        assertEq(token.balanceOf(alice.owner), STAKE, "reclaimed");
    }

    function test_a_node_that_left_takes_part_in_nothing() external {
        bytes memory consent = authorization(operatorKey, alice.owner, block.timestamp);
        vm.startPrank(alice.owner);
        registry.deregister(alice.id);
        bytes memory left = abi.encodeWithSelector(INodeRegistry.NodeNotActive.selector, alice.id, 0, MIN_STAKE);
        vm.expectRevert(left);
        registry.deregister(alice.id);
        vm.expectRevert(left);
        registry.update(alice.id, KEY, "", 0);
        vm.expectRevert(left);
        registry.rotateOperator(alice.id, operator, block.timestamp, consent);
        vm.expectRevert(left);
        registry.stake(alice.id, 1);
        vm.stopPrank();
        vm.expectRevert(left);
        vm.prank(address(market));
        registry.lock(alice.id, 1);
    }

    function test_a_node_without_stake_leaves_without_a_tranche() external {
        Worker memory poor = aWorker("poor", 0);
        vm.prank(poor.owner);
        registry.deregister(poor.id);
        assertEq(registry.tranches(poor.id).length, 0, "nothing to unbond");
    }

    /* DEPLOYING AND BINDING */

    function test_deployment_reverts_when_something_is_zero() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "token"));
        new NodeRegistry(IAvenueToken(address(0)), deployer, 1, 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "deployer"));
        new NodeRegistry(token, address(0), 1, 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "minStake"));
        new NodeRegistry(token, deployer, 0, 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "unbondingPeriod"));
        new NodeRegistry(token, deployer, 1, 0);
    }

    function testFuzz_only_the_deployer_binds_the_market_and_once(address caller) external {
        vm.assume(caller != deployer);
        NodeRegistry fresh = new NodeRegistry(token, deployer, 1, 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.CannotBind.selector, caller, address(0)));
        vm.prank(caller);
        fresh.bindMarket(caller);

        vm.startPrank(deployer);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroValue.selector, "market"));
        fresh.bindMarket(address(0));
        vm.expectEmit(address(fresh));
        emit INodeRegistry.MarketBound(address(market));
        fresh.bindMarket(address(market));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.CannotBind.selector, deployer, address(market)));
        fresh.bindMarket(deployer);
        vm.stopPrank();
        assertEq(fresh.market(), address(market), "bound for good");
    }

    function test_unknown_nodes_are_named() external {
        NodeId nobody = NodeId.wrap(99);
        bytes memory unknown = abi.encodeWithSelector(INodeRegistry.UnknownNode.selector, nobody);
        vm.expectRevert(unknown);
        registry.getNode(nobody);
        vm.expectRevert(unknown);
        registry.ownerOf(nobody);
        vm.expectRevert(unknown);
        registry.freeStake(nobody);
        vm.expectRevert(unknown);
        registry.stake(nobody, 1);
        vm.expectRevert(unknown);
        registry.deregister(nobody);
        vm.expectRevert(unknown);
        registry.withdraw(nobody);
        assertTrue(!registry.isActive(nobody), "not active");
    }

    function _wrongSignature(bytes memory signature) private {
        try this.registerAsCarol(signature) {
            revert("registered without the operator's consent");
        } catch (bytes memory reason) {
            // The recovered key of a wrong digest is anybody's guess: only the error's name is certain.
            assertEq(bytes32(bytes4(reason)), bytes32(INodeRegistry.WrongOperatorSignature.selector), "error");
        }
    }

    function registerAsCarol(bytes memory signature) external {
        vm.prank(owner);
        registry.register(operator, KEY, "", 0, block.timestamp, signature);
    }
}
