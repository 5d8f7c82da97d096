# What the papers prescribe, by trainer, dataset and shots: the one place where it stands.
#
#   recipe TRAINER DATASET SHOTS   sets CFG (the config's name, unless the user has set it) and RECIPE (KEY VALUE
#                                  pairs that go over the config and under the user's own)
#
# BACKBONE (rn50, for CoCoOp vit_b16) is the part of the config's name that says on which backbone.
# PLOT (arXiv 2210.01253, section 4 and its published scripts), CoOp (2109.01134), CoCoOp (2203.05557).

recipe() {
    local trainer=$1 dataset=$2 shots=$3 epochs=200 backbone=${BACKBONE:-rn50}
    RECIPE=""
    case $dataset in
        symbols | symbols_*) CFG=${CFG:-symbols} ;;
    esac
    # The embedded default says all of it in its own config.
    [ "${CFG:-}" = symbols ] && return

    [ "$shots" -le 4 ] && epochs=100
    [ "$shots" -le 1 ] && epochs=50
    [ "$dataset" = imagenet ] && epochs=50

    case $trainer in
        PLOT)
            CFG=${CFG:-$backbone}
            RECIPE="OPTIM.MAX_EPOCH $epochs"
            case $dataset in
                oxford_flowers | fgvc_aircraft | stanford_cars) RECIPE+=" DATALOADER.TRAIN_X.BATCH_SIZE 32" ;;
                imagenet) RECIPE+=" TRAINER.PLOT.GLOBAL_LOGITS True" ;;
            esac
            ;;
        CoOp)
            if [ -z "${CFG:-}" ]; then
                CFG=$backbone
                [ "$epochs" = 200 ] || CFG=${backbone}_ep$epochs
            fi
            ;;
        CoCoOp) CFG=${CFG:-${BACKBONE:-vit_b16}_c4_ep10_batch1_ctxv1} ;;
        ZeroshotCLIP) CFG=${CFG:-$backbone} ;;
    esac
}
