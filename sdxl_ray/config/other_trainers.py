"""What diffusers' scripts, kohya's sd-scripts, OneTrainer, SimpleTuner and ai-toolkit call their settings.

    answer("optim.max_train_steps")   # "other trainers' max_train_steps is optim.steps here"

A list of spellings is no good here: the nearest word to `epochs` is `eps`.
"""

from __future__ import annotations

#: Our setting -> what others call it.
SAME: dict[str, str] = {
    "base": "pretrained_model_name_or_path pretrained_model base_model base_model_name model_name_or_path name_or_path "
    "sdxl_model model_path ckpt checkpoint_path",
    "base.revision": "pretrained_model_revision",
    "base.vae": "pretrained_vae_model_name_or_path vae_path vae_model",
    "base.vae_precision": "vae_dtype no_half_vae",
    "data.images": "instance_data_dir train_data_dir dataset dataset_name dataset_path data_dir image_dir image_folder "
    "folder_path concept_path train_images image_column instance_data_root",
    "data.prompt": "instance_prompt default_caption",
    "data.subject": "trigger_word trigger instance_token token concept placeholder_token",
    "data.class_name": "class_token class_word initializer_token",
    "data.captions": "caption_extension caption_ext caption_strategy metadata_file in_json",
    "data.prior.images": "class_data_dir reg_data_dir reg_dir regularization_dir class_images_dir",
    "data.prior.prompt": "class_prompt",
    "data.prior.num_class_images": "num_reg_images",
    "data.prior.prior_loss_weight": "prior_weight",
    "data.prior.batch_size": "sample_batch_size",
    "data.validation": "validation_data_dir validation_dir",
    "data.limit": "max_train_samples",
    "data.resolution": "image_size train_resolution max_resolution size",
    "data.buckets": "enable_bucket aspect_ratio_bucketing bucket crop_aspect",
    "data.flip": "random_flip flip_aug horizontal_flip flip_x",
    "data.caption_dropout": "caption_dropout_rate proportion_empty_prompts conditioning_dropout_prob ucg_rate",
    "data.cache_latents": "cache_latents_to_disk latent_caching cache_latents_to_ram",
    "data.cache_text": "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk cache_text_embeddings",
    "tuning.kind": "training_method model_type train_type",
    "tuning.rank": "network_dim lora_rank lora_dim network_rank dim lora_r linear",
    "tuning.alpha": "network_alpha lora_alpha linear_alpha",
    "tuning.init": "network_weights lora_weights init_lora pretrained_lora resume_lora",
    "tuning.dropout": "network_dropout lora_dropout rank_dropout module_dropout",
    "tuning.target_modules": "lora_target_modules lora_layers network_args",
    "tuning.use_dora": "weight_decompose lora_decompose",
    "tuning.use_rslora": "rank_stabilized",
    "objective.prediction": "prediction_type v_parameterization parameterization",
    "objective.weighting": "min_snr debiased_estimation_loss loss_weight_fn",
    "objective.snr_gamma": "min_snr_gamma",
    "objective.noise_offset": "offset_noise_weight",
    "objective.zero_terminal_snr": "zero_snr rescale_betas_zero_snr force_v_prediction",
    "objective.loss": "loss_type loss_function",
    "objective.huber_delta": "huber_c",
    "objective.timestep_bias": "timestep_bias_strategy timestep_bias_portion timestep_bias_multiplier",
    "optim.name": "optimizer optimizer_type optim_type",
    "optim.lr": "learning_rate unet_lr lr_unet unet_learning_rate base_lr",
    "optim.text_lr": "text_encoder_lr text_encoder_learning_rate learning_rate_te learning_rate_te1 learning_rate_te2 "
    "te_lr",
    "optim.betas": "adam_beta1 adam_beta2 beta1 beta2",
    "optim.eps": "adam_epsilon epsilon",
    "optim.weight_decay": "adam_weight_decay",
    "optim.lr_scheduler": "lr_scheduler_type learning_rate_scheduler scheduler",
    "optim.warmup_steps": "lr_warmup_steps learning_rate_warmup_steps warmup",
    "optim.lr_num_cycles": "lr_scheduler_num_cycles learning_rate_cycles",
    "optim.lr_power": "lr_scheduler_power",
    "optim.steps": "max_train_steps train_steps num_train_steps max_steps total_steps num_steps iterations",
    "optim.max_grad_norm": "grad_clip gradient_clip_val clip_grad_norm",
    "optim.ema_decay": "use_ema ema_config",
    "artifact.dtype": "save_precision save_dtype",
    "parallel.precision": "mixed_precision train_dtype weight_dtype full_bf16 full_fp16 fp16 bf16 torch_dtype",
    "parallel.workers": "num_processes num_gpus gpus n_gpus world_size",
    "parallel.zero_stage": "deepspeed deepspeed_config zero3",
    "parallel.compile": "torch_compile dynamo_backend",
    "checkpoint.every": "checkpointing_steps save_every_n_steps save_steps save_every checkpoint_every save_interval "
    "save_step_frequency",
    "checkpoint.keep": "checkpoints_total_limit save_last_n_steps max_step_saves_to_keep save_total_limit",
    "evaluation.prompts": "validation_prompt validation_prompts sample_prompts sample_prompt",
    "evaluation.every": "validation_steps sample_every_n_steps sample_every sample_steps validation_every",
    "evaluation.samples_per_prompt": "num_validation_images",
    "evaluation.num_inference_steps": "validation_num_inference_steps",
    "evaluation.guidance_scale": "validation_guidance validation_guidance_scale",
    "resources.wandb": "wandb_project wandb_run_name wandb_entity",
    "seed": "random_seed manual_seed",
}  # fmt: skip

#: What is counted or done in another way here.
OTHERWISE: dict[str, str] = {
    "epochs num_train_epochs max_train_epochs num_epochs epoch": "a run is counted in steps: set optim.steps = "
    "epochs x images / optim.batch_size",
    "repeats num_repeats dataset_repeats repeat": "an image is seen as often as the steps allow: set optim.steps = "
    "repeats x epochs x images / optim.batch_size",
    "train_batch_size batch per_device_train_batch_size": "set optim.batch_size, the images of one optimizer step over "
    "all workers and accumulation (train_batch_size x GPUs x gradient_accumulation_steps)",
    "gradient_accumulation_steps gradient_accumulation grad_accum accumulation_steps": "optim.batch_size is the whole "
    "batch; parallel.micro_batch, the images of one forward, decides how often gradients are accumulated",
    "save_every_n_epochs sample_every_n_epochs validation_epochs checkpoint_epochs": "a run is counted in steps: set "
    "checkpoint.every or evaluation.every = epochs x images / optim.batch_size",
    "lr_warmup_ratio warmup_ratio lr_warmup": "set optim.warmup_steps = ratio x optim.steps",
    "scale_lr": "the rate is not scaled: set optim.lr",
    "train_text_encoder text_encoder_training train_te": "set tuning.text_encoders=[1], [2] or [1, 2]",
    "network_train_unet_only train_unet_only": "set tuning.text_encoders=[]",
    "with_prior_preservation prior_preservation": "set data.prior.num_class_images=200 and data.class_name=dog, or "
    "start from the recipe dreambooth",
    "center_crop random_crop": "set data.crop=center or data.crop=random",
    "use_8bit_adam use_8bit_adamw adam8bit": "set optim.name=adamw8bit",
    "use_prodigy": "set optim.name=prodigy",
    "use_adafactor": "set optim.name=adafactor",
    "xformers enable_xformers_memory_efficient_attention sdpa mem_eff_attn attention_mechanism flash_attention": ""
    "leave it out: PyTorch's own efficient attention is always used",
    "resume resume_from_checkpoint save_state resume_run": "leave it out: the same command with the same --storage "
    "and --name resumes the run",
    "output_dir output_path save_path output_folder training_folder": "the folder is an option: --storage DIR",
    "output_name run_name job_name": "the name is an option: --name NAME",
    "logging_dir report_to log_with tracker_project_name": "TensorBoard is always written; set resources.wandb.project "
    "or resources.mlflow.tracking_uri for others",
    "network_module network_type algo lycoris": "set tuning.kind=lora (or full); other networks are not trained",
    "conv_dim conv_alpha conv_rank": "convolutions are layers as others: name them in tuning.target_modules",
    "allow_tf32 tf32": "leave it out, or choose parallel.precision=bf16",
    "save_model_as": "leave it out: an artifact is written as safetensors",
    "clip_skip": "leave it out: SDXL always reads the layer before the last",
    "shuffle_caption keep_tokens color_aug face_crop_aug_range": "captions and colours are not augmented: leave it out",
    "bucket_reso_steps min_bucket_reso max_bucket_reso bucket_no_upscale": "buckets follow from data.resolution: leave "
    "it out",
    "max_data_loader_n_workers dataloader_num_workers num_workers persistent_data_loader_workers": "leave it out: "
    "latents and texts are cached, so no loader processes are needed",
    "lowram highvram lowvram low_vram": "leave it out; sdxl-ray plan shows what needs memory and what lowers it",
    "push_to_hub hub_token hub_model_id": "leave it out: upload the artifact folder",
}  # fmt: skip

_SAME = {name: setting for setting, theirs in SAME.items() for name in theirs.split()}
_OTHERWISE = {name: how for theirs, how in OTHERWISE.items() for name in theirs.split()}


def answer(path: str) -> str | None:
    """What to write instead of another trainer's setting, with or without a section or dashes; None: none has it."""
    name = path.rpartition(".")[2].lstrip("-").replace("-", "_").lower()
    if name in _SAME:
        return f"other trainers' {name} is {_SAME[name]} here"
    return _OTHERWISE.get(name)
