// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Features beyond Kata's protocol. The agent lists those that it has in extra_features of GetGuestDetails;
// the shim looks there before it uses one, and does without or refuses what needs it.
const (
	FeatureStreams   = "coco-streams"    // byte streams of processes on PortStreams
	FeatureRemove    = "coco-remove"     // CopyFile takes files away
	FeatureRawPath   = "coco-raw-path"   // CopyFile takes names that are not UTF-8
	FeatureRewrite   = "coco-rewrite"    // CopyFile gives files of a container that has not started other content
	FeatureRules     = "coco-rules"      // routes of all tables and types, with metrics, and rules
	FeatureSignalAll = "coco-signal-all" // SignalProcess reaches every process of a container
	FeatureOneOutput = "coco-one-output" // a stream that is named as stdout and as stderr takes both, as they are written
)
