// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package attestation

// codesTDX are the codes that only evidence of TDX has.
var codesTDX = map[Code]Explanation{}
