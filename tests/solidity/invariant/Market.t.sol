// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AvenueToken} from "../../../contracts/AvenueToken.sol";
import {NodeRegistry} from "../../../contracts/NodeRegistry.sol";
import {TaskMarket} from "../../../contracts/TaskMarket.sol";
import {INodeRegistry} from "../../../contracts/interfaces/INodeRegistry.sol";
import {TaskId, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus} from "../../../contracts/types/Task.sol";
import {Test} from "../support/Test.sol";
import {World} from "../support/World.sol";
import {Adversary} from "./Adversary.sol";
import {Observer} from "./Observer.sol";

/// @notice The laws of tests/solidity/README.md, held after every move of any sequence of moves.
contract MarketInvariants is Test {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Adversary private world;
    AvenueToken private token;
    NodeRegistry private registry;
    TaskMarket private market;
    uint256 private genesis;

    function setUp() external {
        world = new Adversary();
        (token, registry, market) = world.contracts();
        genesis = token.totalSupply();
    }

    function targetContracts() external view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(world);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory targets) {
        // Moves that lead on are listed more often than those that end things.
        bytes4[26] memory moves = [
            world.postTask.selector,
            world.postTask.selector,
            world.cancelTask.selector,
            world.closeTask.selector,
            world.claimUnit.selector,
            world.commitUnit.selector,
            world.revealUnit.selector,
            world.workUnit.selector,
            world.workUnit.selector,
            world.workUnit.selector,
            world.acceptUnit.selector,
            world.finaliseUnit.selector,
            world.expireUnit.selector,
            world.withdrawCredit.selector,
            world.addStake.selector,
            world.unbond.selector,
            world.withdrawStake.selector,
            world.deregisterNode.selector,
            world.passTime.selector,
            world.give.selector,
            world.anyMove.selector,
            world.copyResult.selector,
            world.tooEarly.selector,
            world.closeInFlight.selector,
            world.forgeAcceptance.selector,
            world.robStake.selector
        ];
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(world), new bytes4[](moves.length + 1));
        for (uint256 i = 0; i < moves.length; i++) {
            targets[0].selectors[i] = moves[i];
        }
        targets[0].selectors[moves.length] = world.reviveTask.selector;
    }

    /* CAMPAIGNS: a few deep ones rather than one per law */

    function invariant_money_is_conserved() external view {
        _every_token_is_somebodys_or_burned();
        _the_market_holds_every_escrow_and_every_credit();
        _the_registry_holds_every_stake_tranche_and_credit();
        _what_a_task_took_in_is_escrow_paid_or_refunded();
    }

    function invariant_work_is_paid_once_and_stake_answers_for_it() external view {
        _a_unit_pays_once_and_its_price();
        _escrow_covers_every_unit_until_the_task_closes();
        _locked_stake_is_the_collateral_of_the_units_in_flight();
    }

    function invariant_states_follow_the_table() external view {
        _a_task_counts_its_units_right();
        _no_unit_starts_from_an_unknown_state();
    }

    /// @notice The laws would hold in a world where nothing happens, too. Here a fixed sequence of the same moves
    /// makes every transition of the table at least once.
    function test_the_moves_reach_every_transition() external {
        for (uint256 i = 0; i < 500; i++) {
            uint256 seed = uint256(keccak256(abi.encode("reach", i)));
            uint256 move = seed % 16;
            uint256 pick = seed >> 16;
            if (move < 2) world.postTask(uint64(i), uint8(pick), uint8(pick >> 8), uint96(pick >> 16), i % 2 == 0);
            else if (move < 7) world.workUnit(pick, pick >> 8);
            else if (move == 7) world.claimUnit(pick, pick >> 8);
            else if (move == 8) world.commitUnit(pick);
            else if (move == 9) world.acceptUnit(pick, i % 2 == 0);
            else if (move == 10) world.finaliseUnit(pick);
            else if (move == 11) world.expireUnit(pick);
            else if (move == 12) world.closeTask(pick);
            else if (move == 13 && i > 120) world.cancelTask(pick << 8);
            else if (move == 14) world.addStake(pick, 1_000e18);
            else world.passTime(uint32(pick));
        }
        assertTrue(world.unitMoves(UnitStatus.Open, UnitStatus.Claimed) > 0, "claim");
        assertTrue(world.unitMoves(UnitStatus.Claimed, UnitStatus.Committed) > 0, "commit");
        assertTrue(world.unitMoves(UnitStatus.Committed, UnitStatus.Revealed) > 0, "reveal");
        assertTrue(world.unitMoves(UnitStatus.Revealed, UnitStatus.Finalised) > 0, "settle");
        assertTrue(world.unitMoves(UnitStatus.Claimed, UnitStatus.Open) > 0, "expire a claim");
        assertTrue(world.unitMoves(UnitStatus.Committed, UnitStatus.Open) > 0, "expire a commit");
        assertTrue(world.taskMoves(TaskStatus.None, TaskStatus.Posted) > 0, "post");
        assertTrue(world.taskMoves(TaskStatus.Posted, TaskStatus.Cancelled) > 0, "cancel");
        assertTrue(world.taskMoves(TaskStatus.Posted, TaskStatus.Closed) > 0, "close when done");
        assertTrue(world.taskMoves(TaskStatus.Cancelled, TaskStatus.Closed) > 0, "close when cancelled");
        assertTrue(world.deepestRound() > 0, "a second round");
        this.afterInvariant();
    }

    /* MONEY */

    function _every_token_is_somebodys_or_burned() private view {
        address[] memory holders = world.holderList();
        uint256 sum = token.balanceOf(address(market)) + token.balanceOf(address(registry));
        for (uint256 i = 0; i < holders.length; i++) {
            sum += token.balanceOf(holders[i]);
        }
        assertEq(sum, token.totalSupply(), "balances");
        assertEq(token.totalSupply() + world.burned(), genesis, "supply + burned");
    }

    function _the_market_holds_every_escrow_and_every_credit() private view {
        uint256 owed = world.givenToMarket();
        for (uint256 i = 0; i < world.taskCount(); i++) {
            owed += _state(i).escrow;
        }
        address[] memory holders = world.holderList();
        for (uint256 i = 0; i < holders.length; i++) {
            owed += market.credit(holders[i]);
        }
        assertEq(token.balanceOf(address(market)), owed, "market");
    }

    function _the_registry_holds_every_stake_tranche_and_credit() private view {
        uint256 owed = world.givenToRegistry();
        World.Worker[] memory workers = world.workerList();
        for (uint256 i = 0; i < workers.length; i++) {
            owed += registry.getNode(workers[i].id).stake;
            INodeRegistry.Tranche[] memory queue = registry.tranches(workers[i].id);
            assertLe(queue.length, registry.MAX_TRANCHES(), "tranches");
            for (uint256 j = 0; j < queue.length; j++) {
                owed += queue[j].amount;
                if (j > 0) assertTrue(queue[j - 1].maturesAt < queue[j].maturesAt, "tranches out of order");
            }
        }
        address[] memory holders = world.holderList();
        for (uint256 i = 0; i < holders.length; i++) {
            owed += registry.credit(holders[i]);
        }
        assertEq(token.balanceOf(address(registry)), owed, "registry");
    }

    function _what_a_task_took_in_is_escrow_paid_or_refunded() private view {
        for (uint256 i = 0; i < world.taskCount(); i++) {
            Observer.Books memory books = world.booksOf(i);
            assertEq(books.takenIn, _state(i).escrow + books.paid + books.refunded, "books");
        }
    }

    function _a_unit_pays_once_and_its_price() private view {
        for (uint256 i = 0; i < world.taskCount(); i++) {
            uint256 earned = 0;
            for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                if (_unit(i, unit).status == UnitStatus.Finalised) earned += _price(i, unit);
            }
            assertEq(world.booksOf(i).paid, earned, "paid");
        }
    }

    function _escrow_covers_every_unit_until_the_task_closes() private view {
        for (uint256 i = 0; i < world.taskCount(); i++) {
            uint256 due = 0;
            for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                if (_unit(i, unit).status != UnitStatus.Finalised) due += _price(i, unit);
            }
            assertEq(_state(i).escrow, _state(i).status == TaskStatus.Closed ? 0 : due, "escrow");
        }
    }

    /* STAKE */

    function _locked_stake_is_the_collateral_of_the_units_in_flight() private view {
        World.Worker[] memory workers = world.workerList();
        for (uint256 w = 0; w < workers.length; w++) {
            INodeRegistry.Node memory node = registry.getNode(workers[w].id);
            assertLe(node.locked, node.stake, "locked exceeds stake");
            uint256 answering = 0;
            for (uint256 i = 0; i < world.taskCount(); i++) {
                for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                    Unit memory u = _unit(i, unit);
                    if (_inFlight(u.status) && u.node == workers[w].id) answering += world.specAt(i).collateral;
                }
            }
            assertEq(node.locked, answering, "locked");
        }
    }

    /* STATES */

    function _a_task_counts_its_units_right() private view {
        for (uint256 i = 0; i < world.taskCount(); i++) {
            uint256 inFlight = 0;
            uint256 finalised = 0;
            for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                UnitStatus status = _unit(i, unit).status;
                if (_inFlight(status)) inFlight++;
                if (status == UnitStatus.Finalised) finalised++;
            }
            assertEq(_state(i).inFlight, inFlight, "in flight");
            assertEq(_state(i).finalised, finalised, "finalised");
            if (_state(i).status == TaskStatus.Closed) assertEq(inFlight, 0, "closed with units in flight");
        }
    }

    function _no_unit_starts_from_an_unknown_state() private view {
        for (uint256 i = 0; i < world.taskCount(); i++) {
            for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                Unit memory u = _unit(i, unit);
                if (u.status == UnitStatus.Open) continue;
                assertTrue(world.inputKnown(world.specAt(i), unit), "worked on an unknown state");
                assertEq(u.finalStateRoot == 0 ? 0 : 1, u.status >= UnitStatus.Revealed ? 1 : 0, "final state");
            }
        }
    }

    /// @notice However a run went: after the last deadline a stranger empties the market.
    function afterInvariant() external {
        vm.warp(block.timestamp + 365 days + 90 days);
        for (uint256 i = 0; i < world.taskCount(); i++) {
            TaskSpec memory spec = world.specAt(i);
            for (uint32 unit = 0; unit < world.unitCountOf(i); unit++) {
                UnitStatus status = _unit(i, unit).status;
                if (status == UnitStatus.Claimed || status == UnitStatus.Committed) market.expire(spec, unit);
                if (status == UnitStatus.Revealed) market.finalise(spec, unit);
            }
            if (_state(i).status != TaskStatus.Closed) market.close(spec);
        }
        address[] memory holders = world.holderList();
        for (uint256 i = 0; i < holders.length; i++) {
            if (market.credit(holders[i]) > 0) market.withdraw(holders[i]);
        }
        assertEq(token.balanceOf(address(market)), world.givenToMarket(), "drained");
    }

    function _state(uint256 task) private view returns (TaskState memory) {
        return market.getTask(market.taskIdOf(world.specAt(task)));
    }

    function _unit(uint256 task, uint32 unit) private view returns (Unit memory) {
        return market.getUnit(market.taskIdOf(world.specAt(task)), unit);
    }

    function _price(uint256 task, uint32 unit) private view returns (uint96) {
        TaskSpec memory spec = world.specAt(task);
        bool aggregation = spec.shards > 1 && unit % (uint32(spec.shards) + 1) == spec.shards;
        return aggregation ? spec.aggregationPrice : spec.unitPrice;
    }

    function _inFlight(UnitStatus status) private pure returns (bool) {
        return status == UnitStatus.Claimed || status == UnitStatus.Committed || status == UnitStatus.Revealed;
    }
}
