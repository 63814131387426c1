// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhapi

import _ "embed"

// Spec is the description that the types are generated from, for tests that check requests against it.
//
//go:embed openapi.yaml
var Spec []byte
