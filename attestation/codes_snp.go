// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// codesSNP are the codes that only evidence of SNP has.
var codesSNP = map[Code]Explanation{}
