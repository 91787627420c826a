// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {MerkleLib} from "../../../contracts/libraries/MerkleLib.sol";
import {Result, ResultLib} from "../../../contracts/libraries/ResultLib.sol";
import {NodeId} from "../../../contracts/types/NodeId.sol";
import {TaskId} from "../../../contracts/types/Task.sol";
import {Test} from "../support/Test.sol";
import {Trees} from "../support/Trees.sol";

/// @notice The golden vectors that Python wrote and Solidity must agree with, byte for byte.
contract VectorsTest is Test {
    string private merkle = vm.readFile("tests/vectors/merkle.json");
    string private results = vm.readFile("tests/vectors/results.json");

    function test_merkle_roots_and_proofs_agree_with_python() external view {
        uint256 cases = _cases(merkle);
        assertTrue(cases >= 5, "vectors are missing");
        for (uint256 i = 0; i < cases; i++) {
            string memory here = _case(i);
            bytes[] memory leaves = vm.parseJsonBytesArray(merkle, string.concat(here, ".leaves"));
            bytes32 root = vm.parseJsonBytes32(merkle, string.concat(here, ".root"));
            bytes32[] memory hashes = new bytes32[](leaves.length);
            for (uint256 j = 0; j < leaves.length; j++) {
                hashes[j] = MerkleLib.leaf(leaves[j]);
            }
            assertEq(MerkleLib.rootOf(hashes), root, string.concat("root of case ", vm.toString(i)));

            for (uint256 j = 0; j < leaves.length; j++) {
                bytes32[] memory proof =
                    vm.parseJsonBytes32Array(merkle, string.concat(here, ".proofs[", vm.toString(j), "]"));
                assertTrue(MerkleLib.verify(root, leaves.length, j, hashes[j], proof), "proof refused");
                assertTrue(!MerkleLib.verify(root, leaves.length + 1, j, hashes[j], proof), "wrong count passed");
                assertEq(
                    keccak256(abi.encode(proof)),
                    keccak256(abi.encode(Trees.proofOf(hashes, j))),
                    "other proof than ours"
                );
            }
        }
    }

    function test_results_agree_with_python() external view {
        uint256 cases = _cases(results);
        assertTrue(cases >= 2, "vectors are missing");
        for (uint256 i = 0; i < cases; i++) {
            string memory here = _case(i);
            bytes32[] memory roots = vm.parseJsonBytes32Array(results, string.concat(here, ".checkpoint_roots"));
            bytes32[] memory leaves = Trees.leavesOf(roots);
            bytes32 checkpointsRoot = vm.parseJsonBytes32(results, string.concat(here, ".checkpoints_root"));
            assertEq(MerkleLib.rootOf(leaves), checkpointsRoot, "checkpoints root");

            bytes32[] memory proof = vm.parseJsonBytes32Array(results, string.concat(here, ".proof"));
            uint256 last = roots.length - 1;
            assertTrue(MerkleLib.verify(checkpointsRoot, roots.length, last, leaves[last], proof), "last checkpoint");

            bytes32 resultRoot = _result(here, checkpointsRoot).root();
            assertEq(resultRoot, vm.parseJsonBytes32(results, string.concat(here, ".result_root")), "result root");
            bytes32 salt = vm.parseJsonBytes32(results, string.concat(here, ".salt"));
            assertEq(
                ResultLib.commitmentTo(resultRoot, salt),
                vm.parseJsonBytes32(results, string.concat(here, ".commitment")),
                "commitment"
            );
        }
    }

    function test_seeds_and_aggregation_roots_agree_with_python() external view {
        uint256 cases = _cases(results);
        for (uint256 i = 0; i < cases; i++) {
            string memory here = _case(i);
            uint64 seed = uint64(_uint(string.concat(here, ".seed")));
            uint32 shard = uint32(_uint(string.concat(here, ".shard")));
            assertEq(ResultLib.unitSeed(seed, shard), _uint(string.concat(here, ".unit_seed")), "unit seed");

            bytes32[] memory finals = vm.parseJsonBytes32Array(results, string.concat(here, ".shard_final_roots"));
            assertEq(
                ResultLib.aggregationDataRoot(finals),
                vm.parseJsonBytes32(results, string.concat(here, ".aggregation_data_root")),
                "aggregation data root"
            );
        }
    }

    function _result(string memory here, bytes32 checkpointsRoot) private view returns (Result memory) {
        return Result({
            task: TaskId.wrap(vm.parseJsonBytes32(results, string.concat(here, ".task"))),
            unit: uint32(_uint(string.concat(here, ".unit"))),
            node: NodeId.wrap(uint64(_uint(string.concat(here, ".node")))),
            inputStateRoot: vm.parseJsonBytes32(results, string.concat(here, ".input_state_root")),
            dataRoot: vm.parseJsonBytes32(results, string.concat(here, ".data_root")),
            programRoot: vm.parseJsonBytes32(results, string.concat(here, ".program_root")),
            steps: uint32(_uint(string.concat(here, ".steps"))),
            checkpointsRoot: checkpointsRoot
        });
    }

    function _uint(string memory key) private view returns (uint256) {
        return vm.parseJsonUint(results, key);
    }

    function _case(uint256 i) private pure returns (string memory) {
        return string.concat(".cases[", vm.toString(i), "]");
    }

    function _cases(string memory json) private view returns (uint256 count) {
        while (vm.keyExistsJson(json, _case(count))) count++;
    }
}
