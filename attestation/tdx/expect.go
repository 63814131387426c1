// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tdx

import (
	"crypto/ecdsa"
	"time"

	"github.com/coco-shim/coco/attestation"
)

// Expectations are what the caller demands of a TD. The zero value accepts nothing: see attestation.Expectations. Its
// fields beyond those refuse debugging, migration, and each TCB status but UpToDate.
type Expectations struct {
	attestation.Expectations
	TCB TCBPolicy

	// AllowDebug accepts TDs whose memory the host can read.
	AllowDebug bool
	// AllowMigration accepts TDs that the host can move to another machine, and those that are bound to a service TD. A
	// service TD that Fields name is accepted without it.
	AllowMigration bool
	// Attributes and XFAM compare bits of the TD's attributes and of its extended features.
	Attributes Bits
	XFAM       Bits
	// Fields are the allowed values of further fields of the body, by their names in the claims: mr_owner,
	// mr_owner_config,
	// mr_seam, mr_servicetd. A field without an entry may have any value.
	Fields map[string][][]byte
	// NeedEventLog refuses evidence without an event log.
	NeedEventLog bool
	// Root replaces the key of Intel's root certificate, for platforms before production and for tests.
	Root *ecdsa.PublicKey
}

// TCBPolicy says how old firmware, TDX module and quoting enclave may be.
type TCBPolicy struct {
	// Statuses are accepted beside UpToDate. Revoked is never accepted.
	Statuses []Status
	// RefuseAdvisories are advisories of Intel (INTEL-SA-…) that refuse a platform to which they apply, whatever its
	// status.
	RefuseAdvisories []string
	// MinEvaluation is the lowest tcbEvaluationDataNumber of the documents, which Intel raises at each TCB recovery.
	MinEvaluation int
	// MinDate is the earliest date of the TCB level.
	MinDate time.Time
}

// Bits are the bits of Mask, which must be those of Value. The zero Bits compare nothing.
type Bits struct{ Mask, Value uint64 }

func (e Expectations) root() *ecdsa.PublicKey {
	if e.Root != nil {
		return e.Root
	}
	return IntelRoot()
}
