// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AvenueToken} from "../../../contracts/AvenueToken.sol";
import {NodeRegistry} from "../../../contracts/NodeRegistry.sol";
import {TaskMarket} from "../../../contracts/TaskMarket.sol";
import {TaskId, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus} from "../../../contracts/types/Task.sol";
import {World} from "../support/World.sol";

/// @notice Looks at the whole market after every move, whoever made it, and keeps books of its own: which transitions
/// happened, what was taken in, paid, refunded and burned. It reads the chain only, so it believes nobody.
abstract contract Observer is World {
    /// @notice Books of one task, token wei.
    struct Books {
        uint256 takenIn;
        uint256 paid;
        uint256 refunded;
    }

    TaskSpec[] internal specs;
    Worker[] internal workers;
    /// @dev Everybody who may hold tokens or credit.
    address[] internal holders;

    Books[] internal books;
    uint256 public burned;
    uint256 public givenToMarket;
    uint256 public givenToRegistry;

    /// @dev How often each transition was seen, so that a test can show that runs are not empty.
    mapping(TaskStatus from => mapping(TaskStatus to => uint256)) public taskMoves;
    mapping(UnitStatus from => mapping(UnitStatus to => uint256)) public unitMoves;
    uint256 public deepestRound;

    mapping(uint256 task => TaskStatus) private _lastTask;
    mapping(uint256 task => uint96) private _lastEscrow;
    mapping(uint256 task => mapping(uint32 unit => Unit)) private _lastUnit;

    error ForbiddenTaskMove(uint256 task, TaskStatus from, TaskStatus to);
    error ForbiddenUnitMove(uint256 task, uint32 unit, UnitStatus from, UnitStatus to);

    modifier observed() {
        _;
        for (uint256 i = 0; i < specs.length; i++) {
            _observe(i);
        }
    }

    function contracts() external view returns (AvenueToken, NodeRegistry, TaskMarket) {
        return (token, registry, market);
    }

    function taskCount() public view returns (uint256) {
        return specs.length;
    }

    function specAt(uint256 task) public view returns (TaskSpec memory) {
        return specs[task];
    }

    function booksOf(uint256 task) public view returns (Books memory) {
        return books[task];
    }

    function unitCountOf(uint256 task) public view returns (uint32) {
        return specs[task].rounds * unitsPerRoundOf(specs[task]);
    }

    function workerList() public view returns (Worker[] memory) {
        return workers;
    }

    function holderList() public view returns (address[] memory) {
        return holders;
    }

    function _observe(uint256 i) private {
        TaskSpec memory spec = specs[i];
        TaskId task = market.taskIdOf(spec);
        TaskState memory state = market.getTask(task);
        uint256 earned = 0;

        for (uint32 unit = 0; unit < unitCountOf(i); unit++) {
            earned += _observeUnit(i, task, unit, spec);
        }

        TaskStatus from = _lastTask[i];
        require(_taskMayMove(from, state.status), ForbiddenTaskMove(i, from, state.status));
        taskMoves[from][state.status]++;
        if (from == TaskStatus.None) {
            books[i].takenIn = state.escrow;
        } else {
            // INVARIANT: escrow leaves as the price of a unit that is finalised now, or as the refund of a close.
            uint256 refund = from != TaskStatus.Closed && state.status == TaskStatus.Closed ? _lastEscrow[i] : 0;
            assertEq(_lastEscrow[i] - state.escrow, earned + refund, "escrow went elsewhere");
            books[i].paid += earned;
            books[i].refunded += refund;
        }
        _lastTask[i] = state.status;
        _lastEscrow[i] = state.escrow;
    }

    function _observeUnit(uint256 i, TaskId task, uint32 unit, TaskSpec memory spec) private returns (uint256 earned) {
        Unit memory from = _lastUnit[i][unit];
        Unit memory to = market.getUnit(task, unit);
        require(_unitMayMove(from.status, to.status), ForbiddenUnitMove(i, unit, from.status, to.status));
        unitMoves[from.status][to.status]++;
        uint256 round = unit / unitsPerRoundOf(spec);
        if (to.status != UnitStatus.Open && round > deepestRound) deepestRound = round;

        if (from.status == UnitStatus.Finalised) {
            // INVARIANT: Finalised absorbs.
            assertEq(keccak256(abi.encode(to)), keccak256(abi.encode(from)), "a finalised unit changed");
        } else if (to.status == UnitStatus.Finalised) {
            earned = priceOf(spec, unit);
            // INVARIANT: what is paid for is what was revealed.
            assertEq(to.result, from.result, "another result than revealed");
            assertEq(to.finalStateRoot, from.finalStateRoot, "another state than revealed");
            assertTrue(to.node == from.node, "another node than revealed it");
        } else if (from.status != UnitStatus.Open && to.status == UnitStatus.Open) {
            burned += spec.collateral - uint256(spec.collateral) * 5_000 / 10_000 - uint256(spec.collateral) * 500
            / 10_000;
        }
        _lastUnit[i][unit] = to;
    }

    function _taskMayMove(TaskStatus from, TaskStatus to) private pure returns (bool) {
        if (from == to) return true;
        if (from == TaskStatus.None) return to == TaskStatus.Posted;
        if (from == TaskStatus.Posted) return to == TaskStatus.Cancelled || to == TaskStatus.Closed;
        return from == TaskStatus.Cancelled && to == TaskStatus.Closed;
    }

    function _unitMayMove(UnitStatus from, UnitStatus to) private pure returns (bool) {
        if (from == to) return true;
        if (from == UnitStatus.Finalised) return false;
        if (to == UnitStatus.Open) return from == UnitStatus.Claimed || from == UnitStatus.Committed;
        return uint8(to) == uint8(from) + 1;
    }
}
