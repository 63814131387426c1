// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// codesTPM are the codes that only evidence of TPM has.
var codesTPM = map[Code]Explanation{}
