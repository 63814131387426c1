// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
)

func (s *settings) soak(context.Context) error { return errors.New("not yet") }
