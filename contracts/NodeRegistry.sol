// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {IAvenueToken} from "./interfaces/IAvenueToken.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {NodeId} from "./types/NodeId.sol";

/// @title NodeRegistry
/// @notice Compute nodes and their stake. Its promises are in INodeRegistry.
contract NodeRegistry is INodeRegistry, EIP712, Nonces {
    using SafeERC20 for IAvenueToken;

    /* CONSTANTS */

    /// @dev A slash walks every tranche: the bound keeps it far below a block's gas.
    uint256 public constant MAX_TRANCHES = 10;
    uint256 public constant MAX_ENDPOINT_BYTES = 256;
    /// @dev Of every slash at least this part is burned: a cheat who also plays victim and reporter still loses.
    uint256 public constant MIN_BURN_BPS = 3_000;

    uint256 private constant BPS = 10_000;
    NodeId private constant NO_NODE = NodeId.wrap(0);
    bytes32 private constant AUTHORIZATION_TYPEHASH =
        keccak256("OperatorAuthorization(address owner,address operator,uint256 nonce,uint256 deadline)");

    /* IMMUTABLES */

    IAvenueToken public immutable TOKEN;
    /// @dev The only one who may bind the market, once.
    address public immutable DEPLOYER;
    /// @dev Stake below which a node takes no new unit, token wei.
    uint96 public immutable MIN_STAKE;
    /// @dev Time from unbond request to withdrawal, s.
    uint40 public immutable UNBONDING_S;

    /* STORAGE */

    /// @inheritdoc INodeRegistry
    address public market;
    /// @inheritdoc INodeRegistry
    uint64 public nodeCount;
    /// @inheritdoc INodeRegistry
    mapping(address operator => NodeId) public nodeOf;
    /// @inheritdoc INodeRegistry
    mapping(address payee => uint96) public credit;

    mapping(NodeId => Node) private _nodes;
    /// @dev Oldest first. The period is the same for all, so this is the order of maturity too.
    mapping(NodeId => Tranche[]) private _tranches;

    /* CONSTRUCTOR */

    /// @param token What is staked.
    /// @param deployer Who binds the market in the transaction after this one. Not msg.sender: with CREATE2 that is a
    /// factory.
    /// @param minStake Stake below which a node takes no new unit, token wei.
    /// @param unbondingPeriod_s Time from unbond request to withdrawal, s. Must outlast every window in which a fault can
    /// be shown.
    constructor(IAvenueToken token, address deployer, uint96 minStake, uint40 unbondingPeriod_s)
        EIP712("AvenueNodeRegistry", "1")
    {
        require(address(token) != address(0), ZeroValue("token"));
        require(deployer != address(0), ZeroValue("deployer"));
        require(minStake != 0, ZeroValue("minStake"));
        require(unbondingPeriod_s != 0, ZeroValue("unbondingPeriod"));
        TOKEN = token;
        DEPLOYER = deployer;
        MIN_STAKE = minStake;
        UNBONDING_S = unbondingPeriod_s;
    }

    /// @inheritdoc INodeRegistry
    function bindMarket(address market_) external {
        // INVARIANT: whoever may slash is fixed once and for all.
        require(msg.sender == DEPLOYER && market == address(0), CannotBind(msg.sender, market));
        require(market_ != address(0), ZeroValue("market"));

        market = market_;
        emit MarketBound(market_);
    }

    /* REGISTERING */

    /// @inheritdoc INodeRegistry
    function register(
        address operator,
        bytes32 encryptionKey,
        string calldata endpoint,
        bytes32 capabilitiesHash,
        uint256 deadline,
        bytes calldata operatorSignature
    ) external returns (NodeId node) {
        // Check: the profile is usable and the operator consents to serve this owner.
        _checkProfile(encryptionKey, endpoint);
        _useAuthorization(msg.sender, operator, deadline, operatorSignature);

        // Effect: the next id is this node's for ever.
        node = NodeId.wrap(++nodeCount);
        Node storage record = _nodes[node];
        record.owner = msg.sender;
        record.operator = operator;
        record.registeredAt = uint40(block.timestamp);
        record.encryptionKey = encryptionKey;
        record.capabilitiesHash = capabilitiesHash;
        record.endpoint = endpoint;
        nodeOf[operator] = node;

        emit NodeRegistered(node, msg.sender, operator, encryptionKey, endpoint, capabilitiesHash);
    }

    /// @inheritdoc INodeRegistry
    function update(NodeId node, bytes32 encryptionKey, string calldata endpoint, bytes32 capabilitiesHash) external {
        // Check: caller and profile.
        Node storage record = _existing(node);
        require(msg.sender == record.owner || msg.sender == record.operator, NotOwnerOrOperator(node, msg.sender));
        require(!record.leaving, NodeNotActive(node, record.stake, MIN_STAKE));
        _checkProfile(encryptionKey, endpoint);

        // Effect: replace the profile.
        record.encryptionKey = encryptionKey;
        record.capabilitiesHash = capabilitiesHash;
        record.endpoint = endpoint;

        emit NodeUpdated(node, encryptionKey, endpoint, capabilitiesHash);
    }

    /// @inheritdoc INodeRegistry
    function rotateOperator(NodeId node, address newOperator, uint256 deadline, bytes calldata operatorSignature)
        external
    {
        // Check: caller, and the new key consents.
        Node storage record = _owned(node);
        require(!record.leaving, NodeNotActive(node, record.stake, MIN_STAKE));
        _useAuthorization(msg.sender, newOperator, deadline, operatorSignature);

        // Effect: the old key stops working in the same transaction.
        address oldOperator = record.operator;
        nodeOf[oldOperator] = NO_NODE;
        nodeOf[newOperator] = node;
        record.operator = newOperator;

        emit OperatorRotated(node, oldOperator, newOperator);
    }

    /// @inheritdoc INodeRegistry
    function deregister(NodeId node) external {
        // Check: caller, first time, nothing owed.
        Node storage record = _owned(node);
        require(!record.leaving, NodeNotActive(node, record.stake, MIN_STAKE));
        require(record.locked == 0, UnitsInFlight(node, record.locked));

        // Effect: out of service; the key is free to serve another node, the stake is on its way out.
        record.leaving = true;
        nodeOf[record.operator] = NO_NODE;
        emit Deregistered(node);
        if (record.stake > 0) _unbond(node, record, record.stake);
    }

    /* STAKING */

    /// @inheritdoc INodeRegistry
    function stake(NodeId node, uint96 amount) public {
        // Check: the node can still use it.
        Node storage record = _existing(node);
        require(amount != 0, ZeroValue("amount"));
        require(!record.leaving, NodeNotActive(node, record.stake, MIN_STAKE));

        // Effect: more free stake.
        record.stake += amount;
        emit Staked(node, msg.sender, amount);

        // Interaction: take the tokens.
        TOKEN.safeTransferFrom({from: msg.sender, to: address(this), value: amount});
    }

    /// @inheritdoc INodeRegistry
    function stakeWithPermit(NodeId node, uint96 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s) external {
        // Interaction: a front-runner may have used the permit; then the allowance is there already.
        try TOKEN.permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        stake(node, amount);
    }

    /// @inheritdoc INodeRegistry
    function requestUnbond(NodeId node, uint96 amount) external {
        // Check: caller, and the amount answers for nothing in flight.
        Node storage record = _owned(node);
        require(amount != 0, ZeroValue("amount"));
        // INVARIANT: locked <= stake.
        uint96 free = record.stake - record.locked;
        require(amount <= free, NotEnoughFreeStake(node, free, amount));

        // Effect: the clock starts.
        _unbond(node, record, amount);
    }

    /// @inheritdoc INodeRegistry
    function withdraw(NodeId node) external returns (uint96 amount) {
        // Check: caller, and something has matured. The oldest tranches are in front.
        address owner = _owned(node).owner;
        Tranche[] storage queue = _tranches[node];
        uint256 length = queue.length;
        uint256 matured = 0;
        while (matured < length && queue[matured].maturesAt <= block.timestamp) {
            amount += queue[matured].amount;
            matured++;
        }
        require(matured > 0, NothingToWithdraw(node));

        // Effect: close the gap in front, in order.
        for (uint256 i = matured; i < length; i++) {
            queue[i - matured] = queue[i];
        }
        for (uint256 i = 0; i < matured; i++) {
            queue.pop();
        }
        emit Withdrawn(node, owner, amount);

        // Interaction: out of reach of slashes from here on.
        TOKEN.safeTransfer({to: owner, value: amount});
    }

    /// @inheritdoc INodeRegistry
    function collect() external returns (uint96 amount) {
        // Check: there is credit.
        amount = credit[msg.sender];
        require(amount != 0, NothingToCollect(msg.sender));

        // Effect: once.
        credit[msg.sender] = 0;
        emit Collected(msg.sender, amount);

        // Interaction: pay.
        TOKEN.safeTransfer({to: msg.sender, value: amount});
    }

    /* ANSWERING FOR UNITS */

    modifier onlyMarket() {
        require(msg.sender == market, NotMarket(msg.sender));
        _;
    }

    /// @inheritdoc INodeRegistry
    function lock(NodeId node, uint96 amount) external onlyMarket {
        // Check: in service, and enough that answers for nothing else.
        Node storage record = _existing(node);
        require(!record.leaving && record.stake >= MIN_STAKE, NodeNotActive(node, record.stake, MIN_STAKE));
        // INVARIANT: locked <= stake.
        uint96 free = record.stake - record.locked;
        require(amount <= free, NotEnoughFreeStake(node, free, amount));

        // Effect: set aside.
        record.locked += amount;
        emit Locked(node, amount);
    }

    /// @inheritdoc INodeRegistry
    function unlock(NodeId node, uint96 amount) external onlyMarket {
        // Effect: free again. Underflow would mean that the market unlocks what it never locked.
        _nodes[node].locked -= amount;
        emit Unlocked(node, amount);
    }

    /// @inheritdoc INodeRegistry
    function slash(NodeId node, uint96 lockedAmount, uint96 amount, Split calldata split) external onlyMarket {
        // Check: enough is burned, and shares have somebody to go to.
        uint256 mostShared = amount - (uint256(amount) * MIN_BURN_BPS + BPS - 1) / BPS;
        uint256 shared = uint256(split.toHarmed) + split.toReporter;
        // INVARIANT: whoever loses stake loses at least MIN_BURN_BPS of it for good, whoever the shares go to.
        require(shared <= mostShared, SlashTooLarge(shared, mostShared));
        require(split.toHarmed == 0 || split.harmed != address(0), ZeroValue("harmed"));
        require(split.toReporter == 0 || split.reporter != address(0), ZeroValue("reporter"));

        // Effect: take it.
        _take(node, lockedAmount, amount);
        credit[split.harmed] += split.toHarmed;
        credit[split.reporter] += split.toReporter;
        // forge-lint: disable-next-line(unsafe-typecast) -- shared <= mostShared <= amount
        uint96 burned = amount - uint96(shared);
        emit Slashed(node, amount, split.harmed, split.toHarmed, split.reporter, split.toReporter, burned);

        // Interaction: burn the rest.
        TOKEN.burn(burned);
    }

    /* READING */

    /// @inheritdoc INodeRegistry
    function getNode(NodeId node) external view returns (Node memory) {
        return _existing(node);
    }

    /// @inheritdoc INodeRegistry
    function ownerOf(NodeId node) external view returns (address) {
        return _existing(node).owner;
    }

    /// @inheritdoc INodeRegistry
    function isActive(NodeId node) external view returns (bool) {
        Node storage record = _nodes[node];
        return record.owner != address(0) && !record.leaving && record.stake >= MIN_STAKE;
    }

    /// @inheritdoc INodeRegistry
    function freeStake(NodeId node) external view returns (uint96) {
        Node storage record = _existing(node);
        return record.stake - record.locked;
    }

    /// @inheritdoc INodeRegistry
    function tranches(NodeId node) external view returns (Tranche[] memory) {
        return _tranches[node];
    }

    /* INTERNAL */

    function _existing(NodeId node) private view returns (Node storage record) {
        record = _nodes[node];
        require(record.owner != address(0), UnknownNode(node));
    }

    function _owned(NodeId node) private view returns (Node storage record) {
        record = _existing(node);
        require(msg.sender == record.owner, NotOwner(node, msg.sender));
    }

    function _checkProfile(bytes32 encryptionKey, string calldata endpoint) private pure {
        require(encryptionKey != 0, ZeroValue("encryptionKey"));
        uint256 length = bytes(endpoint).length;
        require(length <= MAX_ENDPOINT_BYTES, EndpointTooLong(length, MAX_ENDPOINT_BYTES));
    }

    /// @dev The operator's word that it serves this owner, usable once.
    function _useAuthorization(address owner, address operator, uint256 deadline, bytes calldata signature) private {
        require(operator != address(0), ZeroValue("operator"));
        // INVARIANT: a key serves one node at a time.
        require(nodeOf[operator].isNone(), OperatorInUse(operator, nodeOf[operator]));
        require(block.timestamp <= deadline, SignatureExpired(deadline, block.timestamp));
        bytes32 digest = _hashTypedDataV4(
            keccak256(abi.encode(AUTHORIZATION_TYPEHASH, owner, operator, _useNonce(operator), deadline))
        );
        (address recovered,,) = ECDSA.tryRecoverCalldata(digest, signature);
        require(recovered == operator, WrongOperatorSignature(recovered, operator));
    }

    function _unbond(NodeId node, Node storage record, uint96 amount) private {
        Tranche[] storage queue = _tranches[node];
        uint40 maturesAt = uint40(block.timestamp) + UNBONDING_S;
        uint256 length = queue.length;

        record.stake -= amount;
        // Only requests of the same second share a tranche, so that no older one is ever put off.
        if (length > 0 && queue[length - 1].maturesAt == maturesAt) {
            queue[length - 1].amount += amount;
        } else {
            require(length < MAX_TRANCHES, TooManyTranches(node));
            queue.push(Tranche({amount: amount, maturesAt: maturesAt}));
        }
        emit UnbondRequested(node, amount, maturesAt);
    }

    /// @dev Releases `lockedAmount` from its lock, then takes `amount`: from that and the free stake first, then from
    /// what is unbonding, newest first. What other units have locked stays: it answers for them.
    function _take(NodeId node, uint96 lockedAmount, uint96 amount) private {
        Node storage record = _existing(node);
        require(lockedAmount <= record.locked, SlashTooLarge(lockedAmount, record.locked));
        uint96 locked = record.locked - lockedAmount;
        uint96 free = record.stake - locked;
        uint96 fromStake = amount <= free ? amount : free;
        record.locked = locked;
        record.stake -= fromStake;

        // INVARIANT: stake answers until it has left the contract: a tranche that matured but was not withdrawn, too.
        uint96 left = amount - fromStake;
        Tranche[] storage queue = _tranches[node];
        while (left > 0 && queue.length > 0) {
            Tranche storage newest = queue[queue.length - 1];
            if (newest.amount > left) {
                newest.amount -= left;
                left = 0;
            } else {
                left -= newest.amount;
                queue.pop();
            }
        }
        require(left == 0, SlashTooLarge(amount, amount - left));
    }
}
