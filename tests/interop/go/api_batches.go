// This file answers: does every item of a batch get its own answer, in its place,
// and does a bad one leave nothing behind?
package main

import (
	"context"
	"fmt"
	"slices"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// tooMany is more than a batch may hold.
const tooMany = 10_001

// positions demands these codes in this order.
func positions[T interface{ GetStatus() *types.Status }](c *check, what string, results []T, want ...codes.Code) {
	var got []codes.Code
	for _, result := range results {
		got = append(got, codes.Code(result.GetStatus().GetCode()))
	}
	c.that(slices.Equal(got, want), "%s: expected %v, got %v", what, want, got)
}

func (s *suite) batchChecks(ctx context.Context) {
	s.entryBatchChecks(ctx)
	s.bundleBatchChecks(ctx)
	s.relationshipBatchChecks(ctx)
}

func (s *suite) countEntries(c *check) int32 {
	count, err := s.admin.entries.CountEntries(c.ctx, &entryv1.CountEntriesRequest{})
	c.ok(err, "count")
	return count.GetCount()
}

func (s *suite) entryBatchChecks(ctx context.Context) {
	parent := protoID(s.path("batch-parent"))
	entry := func(name string) *types.Entry {
		return &types.Entry{ParentId: parent, SpiffeId: protoID(s.path("batch-" + name)), Selectors: unixSelector(90)}
	}
	s.check(ctx, "batches/of-entries-with-twins-and-taken-ids", func(c *check) {
		before := s.countEntries(c)
		first, second, clash := entry("one"), entry("two"), entry("three")
		first.Id, clash.Id = "batch-"+s.mark, "batch-"+s.mark
		malformed := entry("four")
		malformed.Id = "no / entry ID"
		created, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{
			Entries: []*types.Entry{first, {}, second, second, clash, malformed, entry("five")},
		})
		c.ok(err, "create")
		results := created.GetResults()
		for _, result := range results {
			if result.GetEntry() != nil {
				s.created = append(s.created, result.GetEntry().GetId())
			}
		}
		positions(c, "create", results, codes.OK, codes.InvalidArgument, codes.OK, codes.AlreadyExists, codes.AlreadyExists, codes.InvalidArgument, codes.OK)
		c.that(proto.Equal(results[2].GetEntry(), results[3].GetEntry()), "a twin in the batch got %v, not %v", results[3].GetEntry(), results[2].GetEntry())
		equal(c, "ID", results[0].GetEntry().GetId(), first.Id)
		equal(c, "entries more than before", s.countEntries(c)-before, 3)
		got, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: first.Id})
		c.ok(err, "get")
		equal(c, "SPIFFE ID of the entry whose ID was taken again", idString(got.GetSpiffeId()), idString(first.GetSpiffeId()))
	})
	s.check(ctx, "batches/of-entries-updated-good-and-bad", func(c *check) {
		made := s.create(c, entry("update-1"), entry("update-2"))
		change := func(of *types.Entry, how func(*types.Entry)) *types.Entry {
			changed := proto.CloneOf(of)
			how(changed)
			return changed
		}
		gone := change(made[0], func(e *types.Entry) { e.Id = "never-" + s.mark })
		nameless := change(made[0], func(e *types.Entry) { e.Id = "" })
		bad := change(made[0], func(e *types.Entry) { e.DnsNames = []string{"not a name"} })
		good := change(made[1], func(e *types.Entry) { e.Hint = "good" })
		updated, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{gone, bad, nameless, good}})
		c.ok(err, "update")
		positions(c, "update", updated.GetResults(), codes.NotFound, codes.InvalidArgument, codes.InvalidArgument, codes.OK)
		got, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: made[0].GetId()})
		c.ok(err, "get")
		c.that(proto.Equal(got, made[0]), "the first entry was changed to %v", got)
		equal(c, "hint", updated.GetResults()[3].GetEntry().GetHint(), "good")
	})
	s.check(ctx, "batches/over-the-bound-do-nothing", func(c *check) {
		before := s.countEntries(c)
		var entries []*types.Entry
		var ids []string
		for i := range tooMany {
			entries = append(entries, &types.Entry{ParentId: parent, SpiffeId: protoID(s.path("over")), Selectors: unixSelector(i)})
			ids = append(ids, fmt.Sprintf("over-%d", i))
		}
		_, err := s.admin.entries.BatchCreateEntry(c.ctx, &entryv1.BatchCreateEntryRequest{Entries: entries})
		c.code(err, codes.ResourceExhausted, "create")
		_, err = s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{Entries: entries})
		c.code(err, codes.ResourceExhausted, "update")
		_, err = s.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: append(ids[1:], s.created[0])})
		c.code(err, codes.ResourceExhausted, "delete")
		equal(c, "entries", s.countEntries(c), before)
	})
}

func (s *suite) bundleBatchChecks(ctx context.Context) {
	one, two, none := s.foreignName("batch-one"), s.foreignName("batch-two"), s.foreignName("batch-none")
	own := s.server.domain.Name()
	bundle := func(name string) *types.Bundle { return &types.Bundle{TrustDomain: name, RefreshHint: 60} }
	s.check(ctx, "batches/of-federated-bundles", func(c *check) {
		garbage := bundle(two)
		garbage.X509Authorities = []*types.X509Certificate{{Asn1: []byte("no certificate")}}
		created, err := s.admin.bundles.BatchCreateFederatedBundle(c.ctx, &bundlev1.BatchCreateFederatedBundleRequest{
			Bundle: []*types.Bundle{garbage, bundle(one), bundle(own), bundle(one), {}, bundle(two)},
		})
		c.ok(err, "create")
		positions(c, "create", created.GetResults(), codes.InvalidArgument, codes.OK, codes.InvalidArgument, codes.AlreadyExists, codes.InvalidArgument, codes.OK)
		updated, err := s.admin.bundles.BatchUpdateFederatedBundle(c.ctx, &bundlev1.BatchUpdateFederatedBundleRequest{
			Bundle: []*types.Bundle{bundle(none), garbage, bundle("no trust domain"), bundle(one)},
		})
		c.ok(err, "update")
		positions(c, "update", updated.GetResults(), codes.NotFound, codes.InvalidArgument, codes.InvalidArgument, codes.OK)
		set, err := s.admin.bundles.BatchSetFederatedBundle(c.ctx, &bundlev1.BatchSetFederatedBundleRequest{
			Bundle: []*types.Bundle{bundle(own), bundle(none), garbage, bundle(one)},
		})
		c.ok(err, "set")
		positions(c, "set", set.GetResults(), codes.InvalidArgument, codes.OK, codes.InvalidArgument, codes.OK)
		deleted, err := s.admin.bundles.BatchDeleteFederatedBundle(c.ctx, &bundlev1.BatchDeleteFederatedBundleRequest{
			TrustDomains: []string{two, own, "no trust domain", two, none, one},
		})
		c.ok(err, "delete")
		positions(c, "delete", deleted.GetResults(), codes.OK, codes.InvalidArgument, codes.InvalidArgument, codes.NotFound, codes.OK, codes.OK)
		for i, name := range []string{two, own, "no trust domain", two, none, one} {
			equal(c, "trust domain of a result", deleted.GetResults()[i].GetTrustDomain(), name)
		}
		_, err = s.admin.bundles.GetFederatedBundle(c.ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: one})
		c.code(err, codes.NotFound, "get")
	})
	s.check(ctx, "batches/append-refuses-garbage-whole", func(c *check) {
		before, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get")
		foreign, err := newForeignDomain(s.foreignName("append"))
		c.ok(err, "make a trust domain")
		_, err = s.admin.bundles.AppendBundle(c.ctx, &bundlev1.AppendBundleRequest{
			X509Authorities: append(foreign.protoBundle().GetX509Authorities(), &types.X509Certificate{Asn1: []byte("no certificate")}),
		})
		c.code(err, codes.InvalidArgument, "append")
		after, err := s.admin.bundles.GetBundle(c.ctx, &bundlev1.GetBundleRequest{})
		c.ok(err, "get")
		c.that(proto.Equal(before, after), "the bundle changed")
	})
}

func (s *suite) relationshipBatchChecks(ctx context.Context) {
	one, none := s.foreignName("related"), s.foreignName("unrelated")
	relationship := func(name string) *types.FederationRelationship {
		return &types.FederationRelationship{
			TrustDomain: name, BundleEndpointUrl: "https://127.0.0.1:1/bundle",
			BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
			TrustDomainBundle:     &types.Bundle{TrustDomain: name},
		}
	}
	strange := relationship(none)
	strange.TrustDomainBundle = &types.Bundle{TrustDomain: one}
	bare := relationship(none)
	bare.BundleEndpointUrl = ""
	own := relationship(s.server.domain.Name())
	s.check(ctx, "batches/of-federation-relationships", func(c *check) {
		created, err := s.admin.trustDomains.BatchCreateFederationRelationship(c.ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{own, relationship(one), strange, bare, {}, relationship(one)},
		})
		c.ok(err, "create")
		positions(c, "create", created.GetResults(),
			codes.InvalidArgument, codes.OK, codes.InvalidArgument, codes.InvalidArgument, codes.InvalidArgument, codes.AlreadyExists)
		updated, err := s.admin.trustDomains.BatchUpdateFederationRelationship(c.ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{
			FederationRelationships: []*types.FederationRelationship{relationship(none), {}, relationship(one)},
		})
		c.ok(err, "update")
		positions(c, "update", updated.GetResults(), codes.NotFound, codes.InvalidArgument, codes.OK)
		deleted, err := s.admin.trustDomains.BatchDeleteFederationRelationship(c.ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{
			TrustDomains: []string{none, "", "no trust domain", one},
		})
		c.ok(err, "delete")
		positions(c, "delete", deleted.GetResults(), codes.NotFound, codes.InvalidArgument, codes.InvalidArgument, codes.OK)
	})
}

func (s *suite) revisionChecks(ctx context.Context) {
	s.check(ctx, "revisions/grow-with-every-change-and-never-come-again", func(c *check) {
		entry := &types.Entry{Id: "revised-" + s.mark, ParentId: protoID(s.path("revised-parent")), SpiffeId: protoID(s.path("revised")), Selectors: unixSelector(91)}
		last := s.create(c, entry)[0].GetRevisionNumber()
		for _, hint := range []string{"one", "two", "three"} {
			updated, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
				Entries: []*types.Entry{{Id: entry.Id, Hint: hint}}, InputMask: &types.EntryMask{Hint: true},
			})
			result, err := only(updated.GetResults(), err)
			c.ok(err, "update")
			next := result.GetEntry().GetRevisionNumber()
			c.that(next > last, "from %d to %d", last, next)
			last = next
		}
		deleted, err := s.admin.entries.BatchDeleteEntry(c.ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{entry.Id}})
		_, err = only(deleted.GetResults(), err)
		c.ok(err, "delete")
		again := s.create(c, entry)[0].GetRevisionNumber()
		// SPIRE begins at 0 again.
		c.that(again > last, "made again with revision %d after %d", again, last)
	})
	s.check(ctx, "revisions/what-is-refused-changes-none", func(c *check) {
		entry := s.create(c, &types.Entry{ParentId: protoID(s.path("revised-parent")), SpiffeId: protoID(s.path("unrevised")), Selectors: unixSelector(92)})[0]
		updated, err := s.admin.entries.BatchUpdateEntry(c.ctx, &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{{Id: entry.GetId()}}, InputMask: &types.EntryMask{Selectors: true},
		})
		result, err := only(updated.GetResults(), err)
		c.ok(err, "update")
		c.status(result.GetStatus(), codes.InvalidArgument, "update")
		got, err := s.admin.entries.GetEntry(c.ctx, &entryv1.GetEntryRequest{Id: entry.GetId()})
		c.ok(err, "get")
		c.that(proto.Equal(got, entry), "it is %v", got)
	})
}
