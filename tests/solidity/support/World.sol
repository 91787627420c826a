// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AvenueToken} from "../../../contracts/AvenueToken.sol";
import {NodeRegistry} from "../../../contracts/NodeRegistry.sol";
import {TaskMarket} from "../../../contracts/TaskMarket.sol";
import {MerkleLib} from "../../../contracts/libraries/MerkleLib.sol";
import {ResultLib} from "../../../contracts/libraries/ResultLib.sol";
import {NodeId} from "../../../contracts/types/NodeId.sol";
import {
    Admission,
    Reveal,
    TaskId,
    TaskSpec,
    TaskState,
    TaskStatus,
    Unit,
    UnitStatus
} from "../../../contracts/types/Task.sol";
import {Test} from "./Test.sol";
import {Trees} from "./Trees.sol";

/// @notice A deployed market with a requester and two staked nodes, and the moves they make in words.
abstract contract World is Test {
    /// @notice A registered node and the keys behind it.
    struct Worker {
        NodeId id;
        address owner;
        address operator;
        uint256 operatorKey;
    }

    uint96 internal constant STAKE = 10_000e18;
    uint96 internal constant MIN_STAKE = 1_000e18;
    uint40 internal constant UNBONDING_S = 7 days;
    bytes32 internal constant SALT = keccak256("salt");

    AvenueToken internal token;
    NodeRegistry internal registry;
    TaskMarket internal market;

    uint256 internal requesterKey = keyOf("requester");
    address internal requester = vm.addr(keyOf("requester"));
    address internal deployer = vm.addr(keyOf("deployer"));
    /// @dev Anybody: owns nothing, is owed nothing.
    address internal stranger = vm.addr(keyOf("stranger"));
    Worker internal alice;
    Worker internal bob;

    function setUp() public virtual {
        _deploy();
    }

    function _deploy() internal {
        address[] memory recipients = new address[](2);
        uint256[] memory amounts = new uint256[](2);
        (recipients[0], amounts[0]) = (requester, 400_000_000e18);
        (recipients[1], amounts[1]) = (address(this), 600_000_000e18);
        token = new AvenueToken(recipients, amounts);
        registry = new NodeRegistry(token, deployer, MIN_STAKE, UNBONDING_S);
        market = new TaskMarket(token, registry);
        vm.prank(deployer);
        registry.bindMarket(address(market));

        vm.prank(requester);
        token.approve(address(market), type(uint256).max);
        token.approve(address(registry), type(uint256).max);
        alice = aWorker("alice", STAKE);
        bob = aWorker("bob", STAKE);
    }

    /* NODES */

    function aWorker(string memory name, uint96 stake) internal returns (Worker memory worker) {
        worker.owner = vm.addr(keyOf(string.concat(name, " owner")));
        worker.operatorKey = keyOf(string.concat(name, " operator"));
        worker.operator = vm.addr(worker.operatorKey);
        bytes memory signature = authorization(worker.operatorKey, worker.owner, block.timestamp);
        vm.prank(worker.owner);
        worker.id = registry.register(
            worker.operator, keccak256(bytes(name)), "https://node.example", bytes32(0), block.timestamp, signature
        );
        if (stake > 0) registry.stake(worker.id, stake);
    }

    function authorization(uint256 operatorKey, address owner, uint256 deadline) internal view returns (bytes memory) {
        address operator = vm.addr(operatorKey);
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("OperatorAuthorization(address owner,address operator,uint256 nonce,uint256 deadline)"),
                owner,
                operator,
                registry.nonces(operator),
                deadline
            )
        );
        return signed(operatorKey, digest("AvenueNodeRegistry", address(registry), structHash));
    }

    /* TASKS */

    /// @notice 2 rounds of 3 shards, 10 steps with a checkpoint every 4: units 0 1 2 (3) | 4 5 6 (7).
    function aSpec() internal view returns (TaskSpec memory) {
        return TaskSpec({
            requester: requester,
            programRoot: keccak256("program"),
            aggregationRoot: keccak256("aggregation"),
            initialStateRoot: keccak256("state"),
            dataRoot: keccak256("data"),
            manifest: keccak256("manifest"),
            seed: 1,
            unitPrice: 10e18,
            aggregationPrice: 3e18,
            collateral: 20e18,
            rounds: 2,
            shards: 3,
            steps: 10,
            checkpointInterval: 4,
            deadline: uint40(block.timestamp + 10 days),
            computeWindow: 1 hours,
            revealWindow: 30 minutes,
            challengeWindow: 2 hours,
            isPrivate: false
        });
    }

    /// @notice 3 rounds of one shard: no aggregation.
    function aSoloSpec() internal view returns (TaskSpec memory spec) {
        spec = aSpec();
        spec.shards = 1;
        spec.rounds = 3;
        spec.aggregationRoot = 0;
        spec.aggregationPrice = 0;
    }

    function post(TaskSpec memory spec) internal returns (TaskId) {
        vm.prank(spec.requester);
        return market.post(spec);
    }

    function unitsPerRoundOf(TaskSpec memory spec) internal pure returns (uint32) {
        return spec.shards == 1 ? 1 : uint32(spec.shards) + 1;
    }

    function aggregates(TaskSpec memory spec, uint32 unit) internal pure returns (bool) {
        return spec.shards > 1 && unit % unitsPerRoundOf(spec) == spec.shards;
    }

    function priceOf(TaskSpec memory spec, uint32 unit) internal pure returns (uint96) {
        return aggregates(spec, unit) ? spec.aggregationPrice : spec.unitPrice;
    }

    function statusOf(TaskSpec memory spec, uint32 unit) internal view returns (UnitStatus) {
        return market.getUnit(market.taskIdOf(spec), unit).status;
    }

    function taskStatusOf(TaskSpec memory spec) internal view returns (TaskStatus) {
        return market.getTask(market.taskIdOf(spec)).status;
    }

    /* MOVES */

    function noAdmission() internal pure returns (Admission memory admission) {}

    function claim(TaskSpec memory spec, uint32 unit, Worker memory worker) internal {
        vm.prank(worker.operator);
        market.claim(spec, unit, noAdmission());
    }

    function commit(TaskSpec memory spec, uint32 unit, Worker memory worker) internal {
        bytes32 commitment = commitmentOf(spec, unit, worker);
        TaskId task = market.taskIdOf(spec);
        vm.prank(worker.operator);
        market.commit(task, unit, commitment);
    }

    function reveal(TaskSpec memory spec, uint32 unit, Worker memory worker) internal {
        Reveal memory opening = openingOf(spec, unit);
        vm.roll(block.number + 1);
        vm.prank(worker.operator);
        market.reveal(spec, unit, opening);
    }

    /// @notice Claims, commits and reveals.
    function work(TaskSpec memory spec, uint32 unit, Worker memory worker) internal {
        claim(spec, unit, worker);
        commit(spec, unit, worker);
        reveal(spec, unit, worker);
    }

    /// @notice Works every unit of a round.
    function workRound(TaskSpec memory spec, uint32 round, Worker memory worker) internal {
        for (uint32 i = 0; i < unitsPerRoundOf(spec); i++) {
            work(spec, round * unitsPerRoundOf(spec) + i, worker);
        }
    }

    /// @notice Brings a unit of round 0 of a posted task to a status, by honest moves of one worker.
    function bringTo(TaskSpec memory spec, uint32 unit, Worker memory worker, UnitStatus status) internal {
        if (status == UnitStatus.Open) return;
        claim(spec, unit, worker);
        if (status == UnitStatus.Claimed) return;
        commit(spec, unit, worker);
        if (status == UnitStatus.Committed) return;
        reveal(spec, unit, worker);
        if (status == UnitStatus.Revealed) return;
        vm.prank(spec.requester);
        market.accept(spec, unit, "");
    }

    function pastDeadlineOf(TaskSpec memory spec, uint32 unit) internal {
        vm.warp(uint256(market.getUnit(market.taskIdOf(spec), unit).deadline) + 1);
    }

    /* RESULTS */

    /// @notice What an honest run of the unit would hash: the same for every node, as in the real thing.
    function checkpointsOf(TaskSpec memory spec, uint32 unit) internal view returns (bytes32[] memory roots) {
        uint256 intervals =
            aggregates(spec, unit) ? 1 : (spec.steps + spec.checkpointInterval - 1) / spec.checkpointInterval;
        roots = new bytes32[](intervals + 1);
        roots[0] = market.inputStateRoot(spec, unit / unitsPerRoundOf(spec));
        for (uint256 i = 1; i <= intervals; i++) {
            roots[i] = keccak256(abi.encode("checkpoint", spec.seed, unit, i));
        }
    }

    function openingOf(TaskSpec memory spec, uint32 unit) internal view returns (Reveal memory) {
        bytes32[] memory roots = checkpointsOf(spec, unit);
        bytes32[] memory leaves = Trees.leavesOf(roots);
        return Reveal({
            checkpointsRoot: MerkleLib.rootOf(leaves),
            finalStateRoot: roots[roots.length - 1],
            proof: Trees.proofOf(leaves, roots.length - 1),
            salt: SALT
        });
    }

    function commitmentOf(TaskSpec memory spec, uint32 unit, Worker memory worker) internal view returns (bytes32) {
        bytes32 checkpointsRoot = openingOf(spec, unit).checkpointsRoot;
        return ResultLib.commitmentTo(market.resultRootOf(spec, unit, worker.id, checkpointsRoot), SALT);
    }

    /* SIGNATURES */

    function digest(string memory name, address verifier, bytes32 structHash) internal view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(name)),
                keccak256("1"),
                block.chainid,
                verifier
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function admissionFor(TaskSpec memory spec, NodeId node, uint256 shards, uint64 deadline, uint256 key)
        internal
        view
        returns (Admission memory)
    {
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("Admission(bytes32 task,uint64 node,uint256 shards,uint64 deadline)"),
                market.taskIdOf(spec),
                node,
                shards,
                deadline
            )
        );
        return Admission(shards, deadline, signed(key, digest("AvenueTaskMarket", address(market), structHash)));
    }

    function acceptanceOf(TaskSpec memory spec, uint32 unit, uint256 key) internal view returns (bytes memory) {
        TaskId task = market.taskIdOf(spec);
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("Acceptance(bytes32 task,uint32 unit,bytes32 resultRoot)"),
                task,
                unit,
                market.getUnit(task, unit).result
            )
        );
        return signed(key, digest("AvenueTaskMarket", address(market), structHash));
    }

    /// @notice An ERC-2612 permit of the requester's or anybody's tokens.
    function permitOf(uint256 key, address spender, uint256 value, uint256 deadline)
        internal
        view
        returns (uint8 v, bytes32 r, bytes32 s)
    {
        address holder = vm.addr(key);
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
                holder,
                spender,
                value,
                token.nonces(holder),
                deadline
            )
        );
        return vm.sign(key, digest("Avenue", address(token), structHash));
    }
}
