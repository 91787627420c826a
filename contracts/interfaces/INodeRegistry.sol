// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeId} from "../types/NodeId.sol";

/// @title Compute nodes and their stake
/// @notice A node has a cold owner key, to which all money goes, and a hot operator key, which works and signs.
/// Stake is free, locked (by the market, one collateral per unit in flight) or unbonding. All three answer for faults
/// until the tokens have left the contract.
/// @dev Assumptions: the token is AvenueToken (no fee, no callback, no rebase); the market is bound once, at
/// deployment, and is the only caller of `lock`, `unlock` and `slash`.
interface INodeRegistry {
    /// @notice A node's record.
    struct Node {
        address owner;
        address operator;
        uint40 registeredAt;
        /// @dev Deregistered: takes no new lock; what is unbonding can still be withdrawn.
        bool leaving;
        /// @dev Active stake, locked part included, token wei.
        uint96 stake;
        /// @dev Part of `stake` that answers for units in flight, token wei.
        uint96 locked;
        /// @dev X25519 public key to which content keys are wrapped.
        bytes32 encryptionKey;
        bytes32 capabilitiesHash;
        string endpoint;
    }

    /// @notice Stake on its way out.
    struct Tranche {
        uint96 amount;
        /// @dev When it may be withdrawn, unix s.
        uint40 maturesAt;
    }

    /// @notice How a slashed amount is split. The rest is burned; whoever decides gets nothing.
    struct Split {
        address harmed;
        uint96 toHarmed;
        address reporter;
        uint96 toReporter;
    }

    event NodeRegistered(
        NodeId indexed node,
        address indexed owner,
        address indexed operator,
        bytes32 encryptionKey,
        string endpoint,
        bytes32 capabilitiesHash
    );
    event NodeUpdated(NodeId indexed node, bytes32 encryptionKey, string endpoint, bytes32 capabilitiesHash);
    event OperatorRotated(NodeId indexed node, address indexed oldOperator, address indexed newOperator);
    event Staked(NodeId indexed node, address indexed from, uint96 amount);
    event Locked(NodeId indexed node, uint96 amount);
    event Unlocked(NodeId indexed node, uint96 amount);
    event UnbondRequested(NodeId indexed node, uint96 amount, uint40 maturesAt);
    event Withdrawn(NodeId indexed node, address indexed owner, uint96 amount);
    event Deregistered(NodeId indexed node);
    event Slashed(
        NodeId indexed node,
        uint96 amount,
        address indexed harmed,
        uint96 toHarmed,
        address indexed reporter,
        uint96 toReporter,
        uint96 burned
    );
    event Collected(address indexed payee, uint96 amount);
    event MarketBound(address indexed market);

    /// @notice Thrown when the caller may not do this for this node.
    error NotOwner(NodeId node, address caller);
    /// @notice Thrown when the caller is neither owner nor operator of the node.
    error NotOwnerOrOperator(NodeId node, address caller);
    /// @notice Thrown when anybody but the bound market locks, unlocks or slashes.
    error NotMarket(address caller);
    /// @notice Thrown when anybody but the deployer binds the market, or it is bound already.
    error CannotBind(address caller, address boundMarket);
    /// @notice Thrown when no such node exists.
    error UnknownNode(NodeId node);
    /// @notice Thrown when the operator key already serves a node.
    error OperatorInUse(address operator, NodeId node);
    /// @notice Thrown when an argument that must not be zero is zero.
    error ZeroValue(string what);
    /// @notice Thrown when the endpoint is longer than MAX_ENDPOINT_BYTES.
    error EndpointTooLong(uint256 length, uint256 max);
    /// @notice Thrown when a signature arrives after its deadline.
    error SignatureExpired(uint256 deadline, uint256 nowTime);
    /// @notice Thrown when the operator's proof of possession was not made by the operator key.
    error WrongOperatorSignature(address recovered, address operator);
    /// @notice Thrown when free stake does not cover the amount.
    error NotEnoughFreeStake(NodeId node, uint256 have, uint256 need);
    /// @notice Thrown when a node below the minimum stake, or leaving, is to take on work.
    error NodeNotActive(NodeId node, uint256 stake, uint256 minimum);
    /// @notice Thrown when MAX_TRANCHES amounts are unbonding already; withdraw a matured one first.
    error TooManyTranches(NodeId node);
    /// @notice Thrown when nothing has matured yet.
    error NothingToWithdraw(NodeId node);
    /// @notice Thrown when the node still answers for units in flight.
    error UnitsInFlight(NodeId node, uint256 locked);
    /// @notice Thrown when a slash releases more than is locked, asks for more than the node has left beside what other
    /// units have locked, or splits so much that less than MIN_BURN_BPS is burned.
    error SlashTooLarge(uint256 asked, uint256 available);
    /// @notice Thrown when the caller has no credit.
    error NothingToCollect(address payee);

    /// @notice Registers a node owned by the caller. The operator proves possession of its key with EIP-712
    /// `OperatorAuthorization(address owner,address operator,uint256 nonce,uint256 deadline)`, domain
    /// ("AvenueNodeRegistry","1"), nonce = nonces(operator).
    function register(
        address operator,
        bytes32 encryptionKey,
        string calldata endpoint,
        bytes32 capabilitiesHash,
        uint256 deadline,
        bytes calldata operatorSignature
    ) external returns (NodeId node);

    /// @notice Changes what others need to reach the node. Owner or operator.
    function update(NodeId node, bytes32 encryptionKey, string calldata endpoint, bytes32 capabilitiesHash) external;

    /// @notice Replaces the operator key; the node keeps its id, stake and units. Owner only.
    function rotateOperator(NodeId node, address newOperator, uint256 deadline, bytes calldata operatorSignature)
        external;

    /// @notice Adds stake from the caller's tokens (allowance needed). Anybody may; it will only ever go to the owner.
    function stake(NodeId node, uint96 amount) external;

    /// @notice As `stake`, with an ERC-2612 permit that may already have been used by a front-runner.
    function stakeWithPermit(NodeId node, uint96 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external;

    /// @notice Starts the unbonding of free stake. Owner only. Withdrawable after UNBONDING_S.
    function requestUnbond(NodeId node, uint96 amount) external;

    /// @notice Sends every matured tranche to the owner. Owner only. Warning: until then even a matured tranche can be
    /// slashed.
    function withdraw(NodeId node) external returns (uint96 amount);

    /// @notice Takes the node out of service and unbonds all its stake. Owner only; no unit may be in flight. The
    /// operator key is free to serve another node.
    function deregister(NodeId node) external;

    /// @notice Pays the caller's credit (shares of slashed stake).
    function collect() external returns (uint96 amount);

    /// @notice Market only: free stake answers for a unit. Active nodes only.
    function lock(NodeId node, uint96 amount) external;

    /// @notice Market only: the unit is done.
    function unlock(NodeId node, uint96 amount) external;

    /// @notice Market only: releases `lockedAmount`, the collateral of the unit at fault, and takes `amount`, of which
    /// `split` is credited and the rest burned, at least MIN_BURN_BPS of it.
    /// @dev Warning: a later fraud slash may exceed what is locked; it then reaches into free stake and the unbonding
    /// tranches, newest first, matured or not. It never reaches what other units have locked.
    function slash(NodeId node, uint96 lockedAmount, uint96 amount, Split calldata split) external;

    /// @notice One time, by the deployer, in the transaction after deployment.
    function bindMarket(address market) external;

    function nodeOf(address operator) external view returns (NodeId);
    function getNode(NodeId node) external view returns (Node memory);
    function ownerOf(NodeId node) external view returns (address);
    function isActive(NodeId node) external view returns (bool);
    function freeStake(NodeId node) external view returns (uint96);
    function tranches(NodeId node) external view returns (Tranche[] memory);
    function credit(address payee) external view returns (uint96);
    function nodeCount() external view returns (uint64);
    function market() external view returns (address);
}
