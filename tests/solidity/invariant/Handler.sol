// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../../../contracts/interfaces/INodeRegistry.sol";
import {Admission, TaskId, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus} from "../../../contracts/types/Task.sol";
import {Observer} from "./Observer.sol";

/// @notice What requesters, workers, owners and passers-by do, each move only where it is allowed: a revert here is a
/// failure. Random numbers choose among the moves that are possible, so that runs reach deep states.
abstract contract Handler is Observer {
    uint256 internal constant MAX_TASKS = 4;

    constructor() {
        _deploy();
        workers.push(alice);
        workers.push(bob);
        workers.push(aWorker("carol", STAKE));
        // Thin: two collaterals and it is out of work.
        workers.push(aWorker("dora", MIN_STAKE));
        holders.push(requester);
        holders.push(stranger);
        holders.push(address(this));
        for (uint256 i = 0; i < workers.length; i++) {
            holders.push(workers[i].owner);
            holders.push(workers[i].operator);
        }
    }

    /* REQUESTER */

    function postTask(uint64 seed, uint8 rounds, uint8 shards, uint96 price, bool isPrivate) external observed {
        if (specs.length == MAX_TASKS) return;
        TaskSpec memory spec = shards % 3 == 0 ? aSoloSpec() : aSpec();
        // Distinct from every other: the number of the task is in the seed.
        spec.seed = uint64((uint256(seed) << 8) | specs.length);
        spec.rounds = uint32(bound(rounds, 1, 3));
        if (spec.shards > 1) spec.shards = uint16(bound(shards, 2, 3));
        spec.unitPrice = uint96(bound(price, 1, 100e18));
        spec.aggregationPrice = spec.shards > 1 ? spec.unitPrice / 3 : 0;
        spec.collateral = uint96(bound(uint256(price) >> 8, spec.unitPrice, 400e18));
        spec.isPrivate = isPrivate;
        specs.push(spec);
        books.push();
        post(spec);
    }

    function cancelTask(uint256 pick) external observed {
        // Rare, or nothing else would be seen.
        if (specs.length == 0 || pick % 8 != 0) return;
        TaskSpec memory spec = specs[(pick >> 8) % specs.length];
        if (taskStatusOf(spec) != TaskStatus.Posted) return;
        vm.prank(requester);
        market.cancel(spec);
    }

    function closeTask(uint256 pick) external observed {
        if (specs.length == 0) return;
        uint256 i = pick % specs.length;
        TaskSpec memory spec = specs[i];
        TaskState memory state = market.getTask(market.taskIdOf(spec));
        bool over = state.status == TaskStatus.Cancelled
            || (state.status == TaskStatus.Posted
                && (block.timestamp > spec.deadline || state.finalised == unitCountOf(i)));
        if (!over || state.inFlight > 0) return;
        vm.prank(stranger);
        market.close(spec);
    }

    /* WORKER */

    function claimUnit(uint256 pick, uint256 who) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Open);
        if (!found) return;
        Worker memory worker = workers[who % workers.length];
        if (!registry.isActive(worker.id) || registry.freeStake(worker.id) < spec.collateral) return;
        Admission memory admission =
            admissionFor(spec, worker.id, type(uint256).max, uint64(block.timestamp), requesterKey);
        vm.prank(worker.operator);
        market.claim(spec, unit, admission);
    }

    function commitUnit(uint256 pick) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Claimed);
        if (found) commit(spec, unit, _workerOf(spec, unit));
    }

    function revealUnit(uint256 pick) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Committed);
        if (!found) return;
        // The adversary moves with workers' own keys too: a worker that committed to noise can never open it.
        Worker memory worker = _workerOf(spec, unit);
        bytes32 committed = market.getUnit(market.taskIdOf(spec), unit).result;
        if (committed == commitmentOf(spec, unit, worker)) reveal(spec, unit, worker);
    }

    /// @notice Claims, commits and reveals without pause, so that later rounds are reached; at times it falls silent
    /// half way, and time passes it by.
    function workUnit(uint256 pick, uint256 who) external {
        this.claimUnit(pick, who);
        if (who % 8 == 1) vm.warp(block.timestamp + 61 minutes);
        else this.commitUnit(pick);
        if (who % 8 == 2) vm.warp(block.timestamp + 31 minutes);
        else this.revealUnit(pick);
    }

    /* SETTLING */

    function acceptUnit(uint256 pick, bool bySignature) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Revealed);
        if (!found) return;
        bytes memory signature = bySignature ? acceptanceOf(spec, unit, requesterKey) : bytes("");
        vm.prank(bySignature ? stranger : requester);
        market.accept(spec, unit, signature);
    }

    function finaliseUnit(uint256 pick) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _findLate(pick, UnitStatus.Revealed);
        if (!found) return;
        vm.prank(stranger);
        market.finalise(spec, unit);
    }

    function expireUnit(uint256 pick) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _findLate(pick, UnitStatus.Claimed);
        if (!found || pick % 2 == 0) (found, spec, unit) = _findLate(pick, UnitStatus.Committed);
        if (!found) return;
        vm.prank(holders[pick % holders.length]);
        market.expire(spec, unit);
    }

    function withdrawCredit(uint256 pick) external observed {
        address payee = holders[pick % holders.length];
        if (market.credit(payee) > 0) market.withdraw(payee);
        if (registry.credit(payee) == 0) return;
        vm.prank(payee);
        registry.collect();
    }

    /* STAKE */

    function addStake(uint256 who, uint96 amount) external observed {
        Worker memory worker = workers[who % workers.length];
        if (registry.getNode(worker.id).leaving) return;
        registry.stake(worker.id, uint96(bound(amount, 1, 1_000e18)));
    }

    function unbond(uint256 who, uint96 amount) external observed {
        Worker memory worker = workers[who % workers.length];
        uint96 free = registry.freeStake(worker.id);
        if (free == 0 || registry.tranches(worker.id).length == registry.MAX_TRANCHES()) return;
        vm.prank(worker.owner);
        registry.requestUnbond(worker.id, uint96(bound(amount, 1, free / 3 + 1)));
    }

    function withdrawStake(uint256 who) external observed {
        Worker memory worker = workers[who % workers.length];
        INodeRegistry.Tranche[] memory queue = registry.tranches(worker.id);
        if (queue.length == 0 || queue[0].maturesAt > block.timestamp) return;
        vm.prank(worker.owner);
        registry.withdraw(worker.id);
    }

    function deregisterNode(uint256 who) external observed {
        if (who % 16 != 0) return;
        Worker memory worker = workers[(who >> 8) % workers.length];
        INodeRegistry.Node memory node = registry.getNode(worker.id);
        if (node.leaving || node.locked > 0 || registry.tranches(worker.id).length == registry.MAX_TRANCHES()) return;
        vm.prank(worker.owner);
        registry.deregister(worker.id);
    }

    /* THE WORLD */

    function passTime(uint32 seconds_) external observed {
        // Mostly within a window; one time in eight past all of them.
        vm.warp(block.timestamp + (seconds_ % 8 == 0 ? bound(seconds_, 1, 3 days) : bound(seconds_, 1, 40 minutes)));
        vm.roll(block.number + 1);
    }

    /// @notice Gives tokens away by plain transfer: nobody's, for ever, and in nobody's way.
    function give(uint96 amount, bool toMarket) external observed {
        amount = uint96(bound(amount, 1, 1e18));
        token.transfer(toMarket ? address(market) : address(registry), amount);
        if (toMarket) givenToMarket += amount;
        else givenToRegistry += amount;
    }

    /* CHOOSING */

    /// @dev A unit in this status whose next move can be made now, looking round from a random place.
    function _find(uint256 pick, UnitStatus status) internal view returns (bool, TaskSpec memory, uint32) {
        for (uint256 t = 0; t < specs.length; t++) {
            uint256 i = (pick % specs.length + t) % specs.length;
            uint32 count = unitCountOf(i);
            for (uint32 u = 0; u < count; u++) {
                uint32 unit = uint32((pick / 7 + u) % count);
                if (statusOf(specs[i], unit) == status && _inTime(specs[i], unit, status)) {
                    return (true, specs[i], unit);
                }
            }
        }
        return (false, aSpec(), 0);
    }

    function _findLate(uint256 pick, UnitStatus status) internal view returns (bool, TaskSpec memory, uint32) {
        for (uint256 t = 0; t < specs.length; t++) {
            uint256 i = (pick % specs.length + t) % specs.length;
            for (uint32 unit = 0; unit < unitCountOf(i); unit++) {
                Unit memory u = market.getUnit(market.taskIdOf(specs[i]), unit);
                if (u.status == status && block.timestamp > u.deadline) return (true, specs[i], unit);
            }
        }
        return (false, aSpec(), 0);
    }

    function _inTime(TaskSpec memory spec, uint32 unit, UnitStatus status) private view returns (bool) {
        TaskId task = market.taskIdOf(spec);
        if (status == UnitStatus.Open) {
            return taskStatusOf(spec) == TaskStatus.Posted && block.timestamp <= spec.deadline && inputKnown(spec, unit);
        }
        return status == UnitStatus.Revealed || block.timestamp <= market.getUnit(task, unit).deadline;
    }

    /// @notice Whether a unit can be worked on, told from the units before it.
    function inputKnown(TaskSpec memory spec, uint32 unit) public view returns (bool) {
        uint32 perRound = unitsPerRoundOf(spec);
        uint32 first = unit - unit % perRound;
        if (aggregates(spec, unit)) {
            for (uint32 shard = first; shard < unit; shard++) {
                if (statusOf(spec, shard) < UnitStatus.Revealed) return false;
            }
            return true;
        }
        return first == 0 || statusOf(spec, first - 1) >= UnitStatus.Revealed;
    }

    function _workerOf(TaskSpec memory spec, uint32 unit) internal view returns (Worker memory) {
        Unit memory u = market.getUnit(market.taskIdOf(spec), unit);
        for (uint256 i = 0; i < workers.length; i++) {
            if (workers[i].id == u.node) return workers[i];
        }
        revert NotTrue("a unit is held by nobody");
    }
}
