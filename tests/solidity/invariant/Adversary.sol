// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {INodeRegistry} from "../../../contracts/interfaces/INodeRegistry.sol";
import {Reveal, TaskId, TaskSpec, TaskStatus, Unit, UnitStatus} from "../../../contracts/types/Task.sol";
import {Handler} from "./Handler.sol";

/// @notice The same world with somebody in it who tries everything else: moves out of turn, other people's
/// signatures and commitments, the registry's back door.
contract Adversary is Handler {
    /// @notice Any move of the market on any unit by anybody. It may succeed or fail; the observer judges what it did.
    function anyMove(uint256 pick, uint256 who, uint8 move, bytes32 noise) external observed {
        if (specs.length == 0) return;
        uint256 i = pick % specs.length;
        TaskSpec memory spec = specs[i];
        // One past the end, too.
        uint32 unit = uint32((pick >> 8) % (uint256(unitCountOf(i)) + 1));
        TaskId task = market.taskIdOf(spec);
        bytes[] memory moves = new bytes[](8);
        moves[0] = abi.encodeCall(market.claim, (spec, unit, noAdmission()));
        moves[1] = abi.encodeCall(market.commit, (task, unit, noise));
        moves[2] = abi.encodeCall(market.reveal, (spec, unit, Reveal(noise, noise, new bytes32[](2), noise)));
        moves[3] = abi.encodeCall(market.accept, (spec, unit, abi.encodePacked(noise, noise, uint8(27))));
        moves[4] = abi.encodeCall(market.finalise, (spec, unit));
        moves[5] = abi.encodeCall(market.expire, (spec, unit));
        moves[6] = abi.encodeCall(market.close, (spec));
        moves[7] = abi.encodeCall(market.post, (spec));
        _try(holders[who % holders.length], address(market), moves[move % 8]);
    }

    /// @notice Replays the opening of one worker's unit as another worker: a copied result earns nothing.
    function copyResult(uint256 pick, uint256 who) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Committed);
        if (!found) return;
        Worker memory thief = workers[who % workers.length];
        if (thief.id == _workerOf(spec, unit).id) return;
        vm.roll(block.number + 1);
        _mustFail(thief.operator, address(market), abi.encodeCall(market.reveal, (spec, unit, openingOf(spec, unit))));
    }

    /// @notice Ends a status before its time.
    function tooEarly(uint256 pick) external observed {
        if (specs.length == 0) return;
        uint256 i = pick % specs.length;
        TaskSpec memory spec = specs[i];
        uint32 unit = uint32((pick >> 8) % unitCountOf(i));
        Unit memory u = market.getUnit(market.taskIdOf(spec), unit);
        if (block.timestamp > u.deadline) return;
        _mustFail(stranger, address(market), abi.encodeCall(market.finalise, (spec, unit)));
        _mustFail(stranger, address(market), abi.encodeCall(market.expire, (spec, unit)));
    }

    /// @notice Takes back escrow that answers for units in flight.
    function closeInFlight(uint256 pick) external observed {
        if (specs.length == 0) return;
        TaskSpec memory spec = specs[pick % specs.length];
        if (market.getTask(market.taskIdOf(spec)).inFlight == 0) return;
        _mustFail(requester, address(market), abi.encodeCall(market.close, (spec)));
    }

    /// @notice Wakes a closed task.
    function reviveTask(uint256 pick) external observed {
        if (specs.length == 0) return;
        TaskSpec memory spec = specs[pick % specs.length];
        if (taskStatusOf(spec) != TaskStatus.Closed) return;
        _mustFail(requester, address(market), abi.encodeCall(market.post, (spec)));
        _mustFail(requester, address(market), abi.encodeCall(market.cancel, (spec)));
        _mustFail(requester, address(market), abi.encodeCall(market.close, (spec)));
        _mustFail(alice.operator, address(market), abi.encodeCall(market.claim, (spec, 0, noAdmission())));
    }

    /// @notice Forges the requester's word with a worker's key.
    function forgeAcceptance(uint256 pick) external observed {
        (bool found, TaskSpec memory spec, uint32 unit) = _find(pick, UnitStatus.Revealed);
        if (!found) return;
        Worker memory worker = _workerOf(spec, unit);
        bytes memory forged = acceptanceOf(spec, unit, worker.operatorKey);
        _mustFail(worker.operator, address(market), abi.encodeCall(market.accept, (spec, unit, forged)));
    }

    /// @notice Reaches for stake past the market.
    function robStake(uint256 who, uint256 victim, uint96 amount) external observed {
        address thief = holders[who % holders.length];
        Worker memory worker = workers[victim % workers.length];
        INodeRegistry.Split memory split = INodeRegistry.Split(thief, amount / 2, thief, 0);
        _mustFail(thief, address(registry), abi.encodeCall(registry.slash, (worker.id, 0, amount, split)));
        _mustFail(thief, address(registry), abi.encodeCall(registry.lock, (worker.id, amount)));
        _mustFail(thief, address(registry), abi.encodeCall(registry.unlock, (worker.id, amount)));
        _mustFail(thief, address(registry), abi.encodeCall(registry.bindMarket, (thief)));
        _mustFail(deployer, address(registry), abi.encodeCall(registry.bindMarket, (deployer)));
        if (thief == worker.owner) return;
        _mustFail(thief, address(registry), abi.encodeCall(registry.withdraw, (worker.id)));
        _mustFail(thief, address(registry), abi.encodeCall(registry.requestUnbond, (worker.id, 1)));
        _mustFail(thief, address(registry), abi.encodeCall(registry.deregister, (worker.id)));
    }

    function _try(address from, address to, bytes memory data) private returns (bool ok) {
        vm.prank(from);
        (ok,) = to.call(data);
    }

    function _mustFail(address from, address to, bytes memory data) private {
        assertTrue(!_try(from, to, data), "an adversary's move succeeded");
    }
}
